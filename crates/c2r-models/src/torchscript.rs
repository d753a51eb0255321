mod diagnosis;
mod export;
mod tune;

use std::{
    fs::File,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use c2r_base::{
    Classifier, ClassifierError,
    grad::{GradientError, is_out_of_memory, message_of, try_gradient},
};
use tch::{CModule, Device, Kind, TchError, Tensor};

use crate::error::ModelError;

/// Images on which a model is compared with its tuned version, and the pixel that follows another in them: an
/// equidistributed sequence, so noise without a generator.
const SAMPLE_IMAGES: i64 = 8;
const SAMPLE_STRIDE: f64 = 0.754_877_666_246_692_8;
/// Batches that a model is tried on. An attack ends with whatever number of images is left.
const BATCHES: [i64; 3] = [2, 1, 3];
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

/// What a model does with images of one shape.
#[derive(Debug)]
pub struct Probed {
    /// Logits per image.
    pub n_classes: i64,
    /// Why no gradient reaches the images; `None` if one does.
    pub no_gradient: Option<GradientError>,
}

impl TorchScript {
    /// Loads `path` to `device`, switches it to evaluation and freezes its parameters.
    ///
    /// # Errors
    /// [`ModelError::TorchScript`] naming the file, if libtorch cannot load it, with what it is instead if it is another
    /// file of PyTorch.
    pub fn load(path: &Path, device: Device) -> Result<Self, ModelError> {
        // Libtorch opens only paths that are UTF-8.
        let loaded = match path.to_str() {
            Some(_) => CModule::load_on_device(path, device),
            None => File::open(path)
                .map_err(TchError::from)
                .and_then(|mut file| CModule::load_data_on_device(&mut file, device)),
        };
        let module = loaded.map_err(|error| {
            let reason = diagnosis::instead(path).unwrap_or_else(|| diagnosis::message(&error));
            ModelError::TorchScript { path: path.to_owned(), reason }
        })?;
        Self::of(path, module, device)
    }

    fn of(path: &Path, mut module: CModule, device: Device) -> Result<Self, ModelError> {
        let wrong = |error: TchError| failure(path, &error);
        module.f_set_eval().map_err(wrong)?;
        for (_, parameter) in module.named_parameters().map_err(wrong)? {
            let _ = parameter.set_requires_grad(false);
        }
        Ok(Self { path: path.to_owned(), module: Arc::new(module), device })
    }

    /// Its parameters by name, on its device.
    ///
    /// # Errors
    /// [`ModelError::TorchScript`] if libtorch cannot list them.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        self.module.named_parameters().map_err(|error| failure(&self.path, &error))
    }

    /// The same model with operators replaced that libtorch computes slowly on the CPU, and how many were: instance
    /// normalization, ReLU and 2x2 average pooling, which become one ([`c2r_kernels`]), and each of them alone. `None` on
    /// other devices, and where there is nothing to replace.
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
        let Some((archive, n_replaced)) = rewritten(&self.path) else { return Ok(None) };
        let Ok(module) = CModule::load_data_on_device(&mut Cursor::new(archive), self.device) else { return Ok(None) };
        let tuned = Self::of(&self.path, module, self.device)?;
        let (logits, gradient) = self.sample(shape)?;
        let Ok((tuned_logits, tuned_gradient)) = tuned.sample(shape) else { return Ok(None) };
        let apart = |a: &Tensor, b: &Tensor| ((a - b).norm() / a.norm().clamp_min(1e-12)).double_value(&[]);
        let same_gradient = match (gradient, tuned_gradient) {
            (Some(gradient), Some(tuned)) => apart(&gradient, &tuned) < SAME_GRADIENT,
            (None, None) => true,
            _ => false,
        };
        let agree = apart(&logits, &tuned_logits) < SAME_LOGITS && same_gradient;
        if agree {
            tuned.specialize(shape);
        }
        Ok(agree.then_some((tuned, n_replaced)))
    }

    /// Lets libtorch compile what it makes of a model while its first batches run, so that it is not part of what is timed
    /// later: passes with and without a gradient.
    fn specialize(&self, shape: [i64; 3]) {
        // The first run is profiled, the second compiled. A GPU has fused kernels besides, first for one number of images,
        // then for another, then for any.
        let runs = if self.device == Device::Cpu { 2 } else { 3 * BATCHES.len() };
        for n in BATCHES.into_iter().cycle().take(runs) {
            let images = self.noise(n, shape);
            let _no_grad = tch::no_grad_guard();
            let _logits = self.module.forward_ts(&[images.copy()]);
            let images = images.set_requires_grad(true);
            if let Ok(logits) = self.forward(&images) {
                let _gradient = try_gradient(&tch::with_grad(|| logits.sum(Kind::Float)), &images, false);
            }
        }
    }

    /// Logits for a fixed batch of noise, and the gradient of their sum of squares if there is one.
    fn sample(&self, shape: [i64; 3]) -> Result<(Tensor, Option<Tensor>), ModelError> {
        let images = self.noise(SAMPLE_IMAGES, shape).set_requires_grad(true);
        let logits = self.forward(&images).map_err(|error| failure(&self.path, &error))?;
        let loss = tch::with_grad(|| logits.square().sum(Kind::Float));
        Ok((logits.detach(), try_gradient(&loss, &images, false).ok()))
    }

    /// `n` images of noise; a model may normalize by an image's own deviation, which a constant image does not have.
    fn noise(&self, n: i64, [channels, height, width]: [i64; 3]) -> Tensor {
        let pixels = Tensor::arange(n * channels * height * width, (Kind::Float, self.device)) * SAMPLE_STRIDE;
        pixels.frac().view([n, channels, height, width])
    }

    /// What the model returns for a copy of the images, which it may change.
    fn forward(&self, images: &Tensor) -> Result<Tensor, TchError> {
        tch::with_grad(|| self.module.forward_ts(&[images.copy()]))
    }

    /// Checks that the model is a classifier of `n_classes` for images of `shape` (`[C, H, W]`) that gradient attacks
    /// can work on: [`TorchScript::probe`], with a gradient.
    ///
    /// # Errors
    /// As [`TorchScript::probe`].
    pub fn check(&self, shape: [i64; 3], n_classes: i64) -> Result<(), ModelError> {
        let probed = self.probe(shape)?;
        let returned = probed.n_classes;
        if returned != n_classes {
            let reason = format!("it returns {returned} logits for each image instead of {n_classes}");
            return Err(self.not_a_classifier(shape, reason));
        }
        match probed.no_gradient {
            Some(reason) => Err(self.not_a_classifier(shape, reason.to_string())),
            None => Ok(()),
        }
    }

    /// Runs the model on 1, 2 and 3 images of noise of `shape` (`[C, H, W]`) and checks that it returns f32 logits
    /// `[N, K]` for each, all finite.
    ///
    /// # Errors
    /// [`ModelError::TorchScript`] if it fails on all of them; [`ModelError::NotAClassifier`] if it takes only some
    /// batches or returns something else.
    pub fn probe(&self, shape: [i64; 3]) -> Result<Probed, ModelError> {
        let wrong = |reason: String| Err(self.not_a_classifier(shape, reason));
        let batches = BATCHES.map(|n| self.noise(n, shape).set_requires_grad(true));
        let returned = batches.each_ref().map(|images| self.forward(images));
        let count = |wanted: bool| {
            let counts = BATCHES.iter().zip(&returned).filter(|(_, logits)| logits.is_ok() == wanted);
            let mut counts: Vec<i64> = counts.map(|(&n, _)| n).collect();
            counts.sort_unstable();
            counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
        };
        let failed = returned.iter().filter_map(|logits| logits.as_ref().err()).next();
        if let Some(error) = failed {
            let message = diagnosis::message(error);
            if is_out_of_memory(&message_of(error)) {
                return Err(ModelError::TorchScript { path: self.path.clone(), reason: message });
            }
            if returned.iter().all(Result::is_err) {
                let hint = diagnosis::hint(&self.module, &batches[0], &message, self.device);
                let reason = hint.map_or(message.clone(), |hint| format!("{message}: {hint}"));
                return Err(ModelError::TorchScript { path: self.path.clone(), reason });
            }
            let (takes, fails) = (count(true), count(false));
            return wrong(format!(
                "it takes {takes} images at once, not {fails} ({message}): {}",
                diagnosis::FIXED_BATCH
            ));
        }
        let returned = returned.map(|logits| logits.expect("failures were returned above"));
        let n_classes = match returned[0].size()[..] {
            [_, n_classes] => n_classes,
            _ => -1,
        };
        for (n, logits) in BATCHES.into_iter().zip(&returned) {
            let (kind, size) = (logits.kind(), logits.size());
            if n_classes < 0 || size != [n, n_classes] {
                let hint = diagnosis::shape(n, &size);
                let k = if n_classes < 0 { "K".to_owned() } else { n_classes.to_string() };
                let images = if n == 1 { "image" } else { "images" };
                return wrong(format!(
                    "for {n} {images} it returns {kind:?} {size:?} instead of Float logits [{n}, {k}]{hint}"
                ));
            }
            if kind != Kind::Float {
                return wrong(format!("it returns {kind:?} instead of Float logits: end its forward with .float()"));
            }
            if logits.isfinite().all().int64_value(&[]) == 0 {
                return wrong(format!(
                    "for a batch of {n} with pixels in [0, 1] it returns values that are not finite"
                ));
            }
        }
        if n_classes < 2 {
            return wrong(format!("it returns {n_classes} value for each image: {}", diagnosis::ONE_OUTPUT));
        }
        let sum = tch::with_grad(|| returned[0].sum(Kind::Float));
        let no_gradient = match try_gradient(&sum, &batches[0], false) {
            Err(GradientError::Failed(reason)) if is_out_of_memory(&reason) => {
                return Err(ModelError::TorchScript { path: self.path.clone(), reason });
            }
            other => other.err(),
        };
        self.specialize(shape);
        Ok(Probed { n_classes, no_gradient })
    }

    fn not_a_classifier(&self, shape: [i64; 3], reason: String) -> ModelError {
        ModelError::NotAClassifier { path: self.path.clone(), shape, reason }
    }
}

/// The archive at `path` with its slow operators replaced, and how many were: first those that become one, then single ones.
fn rewritten(path: &Path) -> Option<(Vec<u8>, usize)> {
    let mut archive = std::fs::read(path).ok()?;
    let mut n = 0;
    if let Ok(Some((fused, n_fused))) = c2r_kernels::tune_torchscript(&archive) {
        archive = fused;
        n += n_fused;
    }
    if let Ok(Some((tuned, n_single))) = tune::tuned(&archive) {
        archive = tuned;
        n += n_single;
    }
    (n > 0).then_some((archive, n))
}

fn failure(path: &Path, error: &TchError) -> ModelError {
    ModelError::TorchScript { path: path.to_owned(), reason: diagnosis::message(error) }
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
    use c2r_base::grad;
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

    /// A file of `tests/files`, for images of 1x8x8 and 3 classes; `make.py` beside them says what each is.
    fn of_files(name: &str) -> Result<TorchScript, ModelError> {
        TorchScript::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files").join(name), Device::Cpu)
    }

    const SHAPE: [i64; 3] = [1, 8, 8];

    #[test]
    fn models_are_tried_on_one_two_and_three_images() {
        for name in ["good", "own-mean", "in-place", "mutating", "root", "sigmoid", "dropout", "cuda"] {
            let model = of_files(&format!("{name}.pt")).unwrap();
            let probed = model.probe(SHAPE).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(probed.n_classes, 3, "{name}");
            assert!(probed.no_gradient.is_none(), "{name}");
            model.check(SHAPE, 3).unwrap();
            assert!(
                model
                    .check(SHAPE, 10)
                    .unwrap_err()
                    .to_string()
                    .contains("returns 3 logits for each image instead of 10")
            );
        }
        let one_hot = of_files("one-hot.pt").unwrap();
        assert!(matches!(one_hot.probe(SHAPE).unwrap().no_gradient, Some(GradientError::Untracked)));
        assert!(matches!(one_hot.check(SHAPE, 3), Err(ModelError::NotAClassifier { .. })));
        assert!(one_hot.tuned(SHAPE).unwrap().is_none());
        for (name, words) in [
            ("squeeze", &["for 1 image it returns Float [3]", "[1, 3]", ".flatten(1) instead of .squeeze()"][..]),
            ("fixed-batch", &["takes 2 images at once, not 1 or 3", "[2, 64]", "torch.jit.script(model.eval())"]),
            ("one-output", &["returns 1 value for each image", "torch.cat([torch.zeros_like(z), z], 1)"]),
            ("classes", &["Float [2] instead of Float logits [2, K]", "not the class"]),
        ] {
            let error = of_files(&format!("{name}.pt")).unwrap().probe(SHAPE).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, ModelError::NotAClassifier { shape: SHAPE, .. }), "{name}: {text}");
            words.iter().for_each(|words| assert!(text.contains(words), "{name}: {text}\nlacks {words}"));
        }
        for (name, words) in [
            ("half", "its parameters are Half and images are Float; call model.float()"),
            ("double", "its parameters are Double and images are Float; call model.float()"),
            ("tuple", "a tuple of 2; return the logits alone: return out[0]"),
            ("dict", "a dict of \"features\", \"logits\"; return the logits alone: return out[\"logits\"]"),
        ] {
            let error = of_files(&format!("{name}.pt")).unwrap().probe(SHAPE).unwrap_err();
            assert!(
                matches!(&error, ModelError::TorchScript { reason, .. } if reason.contains(words)),
                "{name}: {error}"
            );
            assert!(!error.to_string().contains("Internal torch error"), "{name}: {error}");
        }
    }

    #[test]
    fn too_little_memory_is_no_verdict_on_a_model() {
        let error = of_files("memory.pt").unwrap().probe(SHAPE).unwrap_err();
        let ModelError::TorchScript { reason, .. } = &error else { panic!("{error:?}") };
        assert!(reason.contains("out of memory") && !reason.contains("torch.jit"), "{reason}");
    }

    #[test]
    fn other_files_of_pytorch_are_named() {
        for (name, words) in [
            ("state-dict.pth", "a file of torch.save (a state_dict or a pickled module), not TorchScript"),
            ("legacy.pth", "in the format before torch 1.6, not TorchScript"),
            ("exported.pt2", "a program of torch.export (.pt2), not TorchScript"),
        ] {
            let error = of_files(name).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("torch.jit.script(model.eval()).save(FILE)"), "{error}");
        }
    }

    #[test]
    fn a_failure_is_said_in_the_models_own_words() {
        let bright = of_files("bright.pt").unwrap();
        bright.probe(SHAPE).unwrap();
        let white = Tensor::ones([2, 1, 8, 8], (Kind::Float, Device::Cpu));
        let error = bright.logits(&white).unwrap_err().to_string();
        assert!(error.contains("ValueError: too bright") && error.lines().count() == 1, "{error}");
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
        // The first norm, ReLU and pool are one; the second norm has no parameters.
        assert_eq!(n_replaced, 3);
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
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"n\xe9t.pt"));
            std::fs::rename(&path, &odd).unwrap();
            assert_eq!(TorchScript::load(&odd, Device::Cpu).unwrap().probe([1, 2, 2]).unwrap().n_classes, 4);
        }
    }

    #[test]
    fn reproduces_the_reference() {
        let Some(goldens) = Goldens::find() else { return };
        for name in ["convnet_nat", "convnet_at8"] {
            let model = TorchScript::load(&goldens.path(&format!("{name}.torchscript.pt")), Device::Cpu).unwrap();
            model.check([3, 32, 32], 10).unwrap();
            let message = model.check([3, 32, 32], 100).unwrap_err().to_string();
            assert!(message.contains("returns 10 logits for each image instead of 100"), "{message}");
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
