use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use c2r_base::{Classifier, grad};
use tch::{CModule, Device, Kind, Tensor};

use crate::ModelError;

/// A TorchScript file as a classifier: anyone's model, exported with `torch.jit`, that takes pixels in
/// `[0, 1]` and returns logits (normalization inside).
#[derive(Clone, Debug)]
pub struct TorchScript {
    path: PathBuf,
    module: Arc<CModule>,
    device: Device,
}

impl TorchScript {
    /// Loads `path` to `device`, switches it to evaluation and freezes its parameters.
    ///
    /// # Errors
    /// [`ModelError::TorchScript`] naming the file, if libtorch cannot load it.
    pub fn load(path: &Path, device: Device) -> Result<Self, ModelError> {
        let wrong = |error: tch::TchError| failure(path, &error);
        let mut module = CModule::load_on_device(path, device).map_err(wrong)?;
        module.f_set_eval().map_err(wrong)?;
        for (_, parameter) in module.named_parameters().map_err(wrong)? {
            let _ = parameter.set_requires_grad(false);
        }
        Ok(Self { path: path.to_owned(), module: Arc::new(module), device })
    }

    /// Runs the model once on a grey batch and checks that it is a classifier of `n_classes` for images of
    /// `shape` (`[C, H, W]`): logits f32 `[N, K]`, finite, with gradients that reach the images.
    ///
    /// # Errors
    /// [`ModelError::TorchScript`] saying what it returned instead.
    pub fn check(&self, shape: [i64; 3], n_classes: i64) -> Result<(), ModelError> {
        self.probe(shape, Some(n_classes)).map(drop)
    }

    /// [`TorchScript::check`] without knowing the number of classes, which it returns.
    ///
    /// # Errors
    /// [`ModelError::TorchScript`] saying what it returned instead.
    pub fn classes(&self, shape: [i64; 3]) -> Result<i64, ModelError> {
        self.probe(shape, None)
    }

    fn probe(&self, shape: [i64; 3], n_classes: Option<i64>) -> Result<i64, ModelError> {
        let wrong = |reason: String| Err(ModelError::TorchScript { path: self.path.clone(), reason });
        let [channels, height, width] = shape;
        let images =
            Tensor::full([2, channels, height, width], 0.5, (Kind::Float, self.device)).set_requires_grad(true);
        let logits =
            tch::with_grad(|| self.module.forward_ts(&[&images])).map_err(|error| failure(&self.path, &error))?;
        let size = logits.size();
        let fits = size.len() == 2 && size[0] == 2 && n_classes.is_none_or(|n_classes| size[1] == n_classes);
        if !fits || logits.kind() != Kind::Float {
            let wanted = n_classes.map_or("K".to_owned(), |n_classes| n_classes.to_string());
            return wrong(format!(
                "for images [2, {channels}, {height}, {width}] it returns {:?} {:?} instead of Float logits [2, {wanted}]",
                logits.kind(),
                logits.size(),
            ));
        }
        if logits.isfinite().all().int64_value(&[]) == 0 {
            return wrong("it returns values that are not finite for a grey image".into());
        }
        if !logits.requires_grad() {
            return wrong("no gradient flows from its logits to the images (was it exported under no_grad?)".into());
        }
        let gradient = grad::gradients(&logits.sum(Kind::Float), &[&images]).swap_remove(0);
        if !gradient.defined() {
            return wrong("its logits do not depend on the images".into());
        }
        Ok(size[1])
    }
}

fn failure(path: &Path, error: &tch::TchError) -> ModelError {
    let text = error.to_string();
    // libtorch appends its C++ stack, which helps nobody here.
    let reason = text.split("Exception raised from").next().unwrap_or(&text).trim().to_owned();
    ModelError::TorchScript { path: path.to_owned(), reason }
}

impl Classifier for TorchScript {
    /// # Panics
    /// If the model fails on these images or returns anything but f32 `[N, K]`; [`TorchScript::check`] finds
    /// that out beforehand.
    fn logits(&self, images: &Tensor) -> Tensor {
        let logits =
            self.module.forward_ts(&[images]).unwrap_or_else(|error| panic!("{}", failure(&self.path, &error)));
        assert!(
            logits.dim() == 2 && logits.size()[0] == images.size()[0] && logits.kind() == Kind::Float,
            "{} returned {:?} {:?} for images {:?} instead of Float logits [N, K]",
            self.path.display(),
            logits.kind(),
            logits.size(),
            images.size(),
        );
        logits
    }

    fn device(&self) -> Device {
        self.device
    }

    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        Some(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use c2r_testkit::{assert_close, goldens::Goldens, relative_error};

    use super::*;

    #[test]
    fn a_bad_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.pt");
        std::fs::write(&path, b"not a zip").unwrap();
        for path in [path, folder.path().join("absent.pt")] {
            let message = TorchScript::load(&path, Device::Cpu).unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()), "{message}");
            assert!(message.len() < 600, "{message}");
        }
    }

    #[test]
    fn reproduces_the_reference() {
        let Some(goldens) = Goldens::find() else { return };
        for name in ["convnet_nat", "convnet_at8"] {
            let model = TorchScript::load(&goldens.path(&format!("{name}.torchscript.pt")), Device::Cpu).unwrap();
            model.check([3, 32, 32], 10).unwrap();
            let message = model.check([3, 32, 32], 100).unwrap_err().to_string();
            assert!(message.contains("[2, 10]") && message.contains("[2, 100]"), "{message}");
            assert!(model.check([4, 32, 32], 10).unwrap_err().to_string().contains("torchscript.pt"));
            let (images, labels) = goldens.images();
            let file = goldens.tensors(&format!("deterministic_{name}.safetensors"));
            assert_close(name, &model.logits(&images), &file.tensors["clean_logits"], 1e-4);
            let labels = labels.narrow(0, 0, 8);
            let (gradient, _) = grad::input_gradient(&images.narrow(0, 0, 8), |x| {
                model.logits(x).cross_entropy_loss(&labels, None::<&Tensor>, tch::Reduction::None, -100, 0.0)
            });
            // Over all eight images: one of them lies on a kink of a ReLU, which another CPU's rounding crosses.
            assert!(relative_error(&gradient, &file.tensors["ce_sum_input_grad_first8"]) < 1e-3);
        }
    }
}
