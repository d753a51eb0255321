use c2r_base::{Classifier, ClassifierError, LabelledImages};
use tch::Kind;

use crate::read;

/// The part of `images` that `model` classifies as labelled, in `[0, 1]`.
///
/// * `batch_size`: images per forward pass; changes nothing but memory and speed.
///
/// # Errors
/// What `model` returns.
///
/// # Panics
/// If `batch_size` is 0.
pub fn accuracy(model: &dyn Classifier, images: &LabelledImages, batch_size: usize) -> Result<f64, ClassifierError> {
    assert!(batch_size > 0, "batch_size must be at least 1");
    let _no_grad = tch::no_grad_guard();
    let n = images.len() as i64;
    let mut correct = Vec::new();
    let mut start = 0;
    while start < n {
        let length = (n - start).min(batch_size as i64);
        let logits = model.logits(&images.images().narrow(0, start, length).to_device(model.device()))?;
        let labels = images.labels().narrow(0, start, length).to_device(model.device());
        correct.push(logits.argmax(1, false).eq_tensor(&labels).sum(Kind::Int64));
        start += length;
    }
    Ok(read(&correct).iter().sum::<f64>() / n as f64)
}

#[cfg(test)]
mod tests {
    use c2r_testkit::toys;

    use super::*;

    #[test]
    fn counts_every_image_whatever_the_batch() {
        let toy = toys::Linear::mixed(3, [1, 2, 2]);
        let images = toys::images(10, [1, 2, 2]);
        let mut labels = Vec::<i64>::try_from(toy.logits(&images).argmax(1, false)).unwrap();
        for wrong in [0, 9] {
            labels[wrong] = (labels[wrong] + 1) % 3;
        }
        let set = LabelledImages::new(images, tch::Tensor::from_slice(&labels)).unwrap();
        for batch_size in [1, 3, 10, 64] {
            assert_eq!(accuracy(&toy, &set, batch_size).unwrap(), 0.8);
        }
    }
}
