mod tune;

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use c2r_base::{Classifier, ClassifierError, grad};
use tch::{CModule, Device, Kind, Tensor};

use crate::error::ModelError;

/// Images on which a model is compared with its tuned version, and the pixel that follows another in them: an
/// equidistributed sequence, so noise without a generator.
const SAMPLE_IMAGES: i64 = 8;
const SAMPLE_STRIDE: f64 = 0.754_877_666_246_692_8;
/// Relative difference that rounding explains: of the logits; of the gradient, where a ReLU at its kink may flip.
const SAME_LOGITS: f64 = 1e-4;
const SAME_GRADIENT: f64 = 1e-2;

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
        let module = CModule::load_on_device(path, device).map_err(|error| failure(path, &error))?;
        Self::of(path, module, device)
    }

    fn of(path: &Path, mut module: CModule, device: Device) -> Result<Self, ModelError> {
        let wrong = |error: tch::TchError| failure(path, &error);
        module.f_set_eval().map_err(wrong)?;
        for (_, parameter) in module.named_parameters().map_err(wrong)? {
            let _ = parameter.set_requires_grad(false);
        }
        Ok(Self { path: path.to_owned(), module: Arc::new(module), device })
    }

    /// The same model with operators replaced that libtorch computes slowly on the CPU, and how many were: 2x2
    /// average pooling and instance normalization. `None` on other devices, and where there is nothing to replace.
    ///
    /// Equal but for float rounding; that is not taken on trust: both versions are run on noise of `shape`
    /// (`[C, H, W]`), and if logits or input gradients disagree, the answer is `None`, too.
    ///
    /// # Errors
    /// [`ModelError::TorchScript`] if this model fails on images of that shape.
    pub fn tuned(&self, shape: [i64; 3]) -> Result<Option<(Self, usize)>, ModelError> {
        if self.device != Device::Cpu {
            return Ok(None);
        }
        // What cannot be rewritten or loaded after it stays as it is.
        let Ok(Some((archive, n_replaced))) = tune::tuned(&self.path) else { return Ok(None) };
        let Ok(module) = CModule::load_data_on_device(&mut Cursor::new(archive), self.device) else { return Ok(None) };
        let tuned = Self::of(&self.path, module, self.device)?;
        let (logits, gradient) = self.sample(shape)?;
        let Ok((tuned_logits, tuned_gradient)) = tuned.sample(shape) else { return Ok(None) };
        let apart = |a: &Tensor, b: &Tensor| ((a - b).norm() / a.norm().clamp_min(1e-12)).double_value(&[]);
        let agree = apart(&logits, &tuned_logits) < SAME_LOGITS && apart(&gradient, &tuned_gradient) < SAME_GRADIENT;
        Ok(agree.then_some((tuned, n_replaced)))
    }

    /// Logits and the gradient of their sum of squares for a fixed batch of noise.
    fn sample(&self, [channels, height, width]: [i64; 3]) -> Result<(Tensor, Tensor), ModelError> {
        let n = SAMPLE_IMAGES * channels * height * width;
        let pixels = Tensor::arange(n, (Kind::Float, self.device)) * SAMPLE_STRIDE;
        let images = pixels.frac().view([SAMPLE_IMAGES, channels, height, width]).set_requires_grad(true);
        let logits =
            tch::with_grad(|| self.module.forward_ts(&[&images])).map_err(|error| failure(&self.path, &error))?;
        let loss = tch::with_grad(|| logits.square().sum(Kind::Float));
        Ok((logits.detach(), grad::gradients(&loss, &[&images]).swap_remove(0)))
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
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let logits =
            self.module.forward_ts(&[images]).map_err(|error| ClassifierError::new(failure(&self.path, &error)))?;
        if logits.dim() != 2 || logits.size()[0] != images.size()[0] || logits.kind() != Kind::Float {
            let (kind, size, given) = (logits.kind(), logits.size(), images.size());
            let reason = format!("for images {given:?} it returned {kind:?} {size:?} instead of Float logits [N, K]");
            return Err(ClassifierError::new(ModelError::TorchScript { path: self.path.clone(), reason }));
        }
        Ok(logits)
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

    /// A traced network with every operator that is replaced, for images of 3x9x12.
    fn traced(path: &Path) {
        let weight = c2r_testkit::toys::images(4, [3, 3, 3]) - 0.5;
        let scale = c2r_testkit::toys::images(1, [4, 1, 1]).flatten(0, -1) + 0.5;
        let shift = &scale - 0.7;
        let mut forward = |inputs: &[Tensor]| {
            let none = None::<&Tensor>;
            let x = inputs[0].conv2d(&weight, none, 1, 1, 1, 1);
            let x = x.instance_norm(Some(&scale), Some(&shift), none, none, true, 0.1, 1e-5, true).relu();
            let x = x.avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>);
            let x = x.instance_norm(none, none, none, none, true, 0.1, 1e-5, true);
            let x = x.avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>);
            vec![x.flatten(1, -1)]
        };
        let module = CModule::create_by_tracing(
            "Net",
            "forward",
            &[Tensor::rand([2, 3, 9, 12], (Kind::Float, Device::Cpu))],
            &mut forward,
        );
        module.unwrap().save(path).unwrap();
    }

    #[test]
    fn tuning_changes_the_operators_and_not_the_function() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.pt");
        traced(&path);
        let model = TorchScript::load(&path, Device::Cpu).unwrap();
        let (tuned, n_replaced) = model.tuned([3, 9, 12]).unwrap().expect("it has slow operators");
        assert_eq!(n_replaced, 4);
        let images = c2r_testkit::toys::images(5, [3, 9, 12]);
        assert_close("logits", &tuned.logits(&images).unwrap(), &model.logits(&images).unwrap(), 1e-5);
        let gradient = |model: &TorchScript| {
            let loss =
                |x: &Tensor| model.logits(x).unwrap().square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
            grad::input_gradient(&images, loss).0
        };
        assert!(relative_error(&gradient(&tuned), &gradient(&model)) < 1e-4);
        // Images that do not fit: an error with the model's own message, neither a panic nor a silent None.
        let error = model.logits(&c2r_testkit::toys::images(2, [4, 9, 12])).unwrap_err().to_string();
        assert!(error.contains("net.pt") && error.contains("channels"), "{error}");
        assert!(model.tuned([4, 9, 12]).unwrap_err().to_string().contains("net.pt"));
    }

    #[test]
    fn a_model_without_slow_operators_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.pt");
        let mut forward = |inputs: &[Tensor]| vec![inputs[0].flatten(1, -1) * 2.0];
        let example = [Tensor::zeros([1, 1, 2, 2], (Kind::Float, Device::Cpu))];
        CModule::create_by_tracing("Net", "forward", &example, &mut forward).unwrap().save(&path).unwrap();
        let model = TorchScript::load(&path, Device::Cpu).unwrap();
        assert!(model.tuned([1, 2, 2]).unwrap().is_none());
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
            assert_close(name, &model.logits(&images).unwrap(), &file.tensors["clean_logits"], 1e-4);
            let labels = labels.narrow(0, 0, 8);
            let (gradient, _) = grad::input_gradient(&images.narrow(0, 0, 8), |x| {
                model.logits(x).unwrap().cross_entropy_loss(&labels, None::<&Tensor>, tch::Reduction::None, -100, 0.0)
            });
            let (tuned, n_replaced) = model.tuned([3, 32, 32]).unwrap().expect("it pools by averages on the CPU");
            assert_eq!(n_replaced, 3);
            assert_close(name, &tuned.logits(&images).unwrap(), &file.tensors["clean_logits"], 1e-4);
            // Over all eight images: one of them lies on a kink of a ReLU, which another CPU's rounding crosses.
            assert!(relative_error(&gradient, &file.tensors["ce_sum_input_grad_first8"]) < 1e-3);
        }
    }
}
