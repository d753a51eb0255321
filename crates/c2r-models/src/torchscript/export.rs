//! A network of c2r as a TorchScript model for others.

use std::fmt::Write;

use c2r_kernels::torchscript;

use crate::{
    convnet::NORM_EPS,
    error::ModelError,
    layer::{Layer, Norm},
    model::Model,
    network,
};

impl Model {
    /// The network as a TorchScript archive, the bytes of a file: a module from pixels f32 `[N, C, H, W]` in `[0, 1]` to logits, in
    /// plain operators of PyTorch. Its parameters have the names of [`Model::parameters`], and `mean` and `std` are buffers.
    ///
    /// # Errors
    /// [`ModelError::Script`] with the message of libtorch.
    pub fn to_torchscript(&self) -> Result<Vec<u8>, ModelError> {
        let layers = network::layers(self.spec(), self.input());
        let buffers = [("mean".to_owned(), self.mean()), ("std".to_owned(), self.std())];
        torchscript(&self.parameters(), &buffers, &forward(&layers))
            .map_err(|error| ModelError::Script(error.to_string()))
    }
}

/// The method `forward` of the layers and the classifier after them.
fn forward(layers: &[Layer]) -> String {
    let mut code = String::from("def forward(self, images):\n    x = (images - self.mean) / self.std\n");
    write_layers(layers, "x", &mut code);
    let (weight, bias) = (member("classifier.weight"), member("classifier.bias"));
    code + &format!("    return torch.linear(torch.flatten(x, 1), {weight}, {bias})\n")
}

/// The lines that replace the variable `x` by what the layers make of it.
fn write_layers(layers: &[Layer], x: &str, code: &mut String) {
    for layer in layers {
        let value = match layer {
            Layer::Convolution { name, stride, padding, bias, .. } => {
                let bias = if *bias { member(&format!("{name}.bias")) } else { "None".to_owned() };
                let weight = member(&format!("{name}.weight"));
                format!("torch.conv2d({x}, {weight}, {bias}, [{stride}, {stride}], [{padding}, {padding}])")
            }
            Layer::Norm { name, norm, channels } => {
                let of = |part: &str| member(&format!("{name}.{part}"));
                let (weight, bias) = (of("weight"), of("bias"));
                match norm {
                    Norm::Instance => format!("torch.group_norm({x}, {channels}, {weight}, {bias}, {NORM_EPS:e})"),
                    Norm::Groups(n) => format!("torch.group_norm({x}, {n}, {weight}, {bias}, {NORM_EPS:e})"),
                    Norm::Layer(height, width) => {
                        format!(
                            "torch.layer_norm({x}, [{channels}, {height}, {width}], {weight}, {bias}, {NORM_EPS:e})"
                        )
                    }
                    Norm::Batch => {
                        let (mean, variance) = (of("running_mean"), of("running_var"));
                        format!(
                            "torch.batch_norm({x}, {weight}, {bias}, {mean}, {variance}, False, 0.0, {NORM_EPS:e}, True)"
                        )
                    }
                }
            }
            Layer::Relu => format!("torch.relu({x})"),
            Layer::MaxPool => format!("torch.max_pool2d({x}, [2, 2])"),
            Layer::AveragePool => format!("torch.avg_pool2d({x}, [2, 2])"),
            Layer::Residual { inner, shortcut } => {
                let (inside, around) = (format!("{x}_inner"), format!("{x}_shortcut"));
                for (variable, layers) in [(&inside, inner), (&around, shortcut)] {
                    let _ = writeln!(code, "    {variable} = {x}");
                    write_layers(layers, variable, code);
                }
                format!("torch.relu({inside} + {around})")
            }
            Layer::GlobalMean => format!("torch.mean({x}, [2, 3])"),
        };
        let _ = writeln!(code, "    {x} = {value}");
    }
}

/// A parameter by its name, of which the parts between points are submodules.
fn member(name: &str) -> String {
    name.split('.').fold("self".to_owned(), |owner, part| match part.parse::<u32>() {
        Ok(_) => format!("getattr({owner}, \"{part}\")"),
        Err(_) => format!("{owner}.{part}"),
    })
}

#[cfg(test)]
mod tests {
    use c2r_base::{Classifier, Seed, grad};
    use c2r_testkit::{assert_close, relative_error, toys};
    use tch::{CModule, Device, Kind, Tensor};

    use super::*;
    use crate::{ModelInput, TorchScript, layer::Stack};

    fn model(spec: &str, [channels, height, width]: [i64; 3]) -> Model {
        let per_channel = |value: f64| (0..channels).map(|channel| value + 0.05 * channel as f64).collect();
        let input = ModelInput { channels, height, width, n_classes: 5, mean: per_channel(0.4), std: per_channel(0.2) };
        Model::new(&spec.parse().unwrap(), &input, Seed::new(3), Device::Cpu).unwrap()
    }

    /// Norms that only networks of `state_dict`s have.
    #[test]
    fn every_norm_is_computed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.pt");
        for norm in [Norm::Groups(4), Norm::Layer(6, 6), Norm::Batch] {
            let norm = Layer::Norm { name: "bn1".into(), norm, channels: 8 };
            let layers = vec![Layer::convolution("conv1".into(), 3, 8, 3, 1, false), norm, Layer::GlobalMean];
            let of = |(name, shape): (String, Vec<i64>)| {
                let n = shape.iter().product::<i64>();
                let values = toys::images(1, [1, 1, n]).view(shape.as_slice()) - 0.3;
                (name.clone(), if name.ends_with("var") { values.abs() + 0.1 } else { values })
            };
            let shapes = Layer::parameters(&layers).into_iter().map(|parameter| (parameter.name, parameter.shape));
            let last = [("classifier.weight", vec![5, 8]), ("classifier.bias", vec![5])];
            let parameters: Vec<(String, Tensor)> =
                shapes.chain(last.map(|(name, shape)| (name.to_owned(), shape))).map(of).collect();
            let numbers = [("mean", 0.4), ("std", 0.2)];
            let numbers = numbers.map(|(name, value)| (name.to_owned(), Tensor::from_slice(&[value as f32])));
            let all = parameters.iter().chain(&numbers).map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
            let (learned, buffers): (Vec<_>, Vec<_>) =
                all.partition(|(name, _)| name.ends_with("weight") || name.ends_with("bias"));
            std::fs::write(&path, torchscript(&learned, &buffers, &forward(&layers)).unwrap()).unwrap();
            let images = toys::images(2, [3, 6, 6]);
            let parameters = parameters.into_iter().collect();
            let features = Stack::new(layers, &parameters).features(&((&images - 0.4) / 0.2), None);
            let logits = features.linear(&parameters["classifier.weight"], Some(&parameters["classifier.bias"]));
            assert_close("norm", &CModule::load(&path).unwrap().forward_ts(&[images]).unwrap(), &logits, 1e-5);
        }
    }

    #[test]
    fn every_network_computes_the_same_as_torchscript() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.pt");
        for (spec, shape) in [
            ("ConvNet-D2-W8-IN", [1, 8, 8]),
            ("ConvNet-D3-W16-IN", [3, 32, 32]),
            ("ConvNet-D2-W8-NONE", [3, 13, 11]),
            ("ResNet18-IN", [3, 16, 16]),
            ("VGG11-IN", [3, 32, 32]),
            ("AlexNet-NONE", [3, 16, 16]),
        ] {
            let model = model(spec, shape);
            std::fs::write(&path, model.to_torchscript().unwrap()).unwrap();
            let script = TorchScript::load(&path, Device::Cpu).unwrap();
            script.check(shape, 5).unwrap();
            let tuned = script.tuned(shape).unwrap().map(|(tuned, _)| tuned);
            assert_eq!(tuned.is_some(), spec.starts_with("ConvNet"), "{spec}");
            let images = toys::images(3, shape);
            model.set_trainable(false);
            let sum = |logits: Tensor| logits.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
            let (gradient, _) = grad::input_gradient(&images, |x| sum(model.logits(x)));
            for script in [Some(script), tuned].into_iter().flatten() {
                assert_close(spec, &script.logits(&images).unwrap(), &model.logits(&images), 1e-5);
                let (theirs, _) = grad::input_gradient(&images, |x| sum(script.logits(x).unwrap()));
                assert!(relative_error(&theirs, &gradient) < 1e-4, "{spec}");
            }
            // As a `state_dict` has them.
            let module = CModule::load(&path).unwrap();
            let mut names: Vec<String> = module.named_parameters().unwrap().into_iter().map(|(name, _)| name).collect();
            names.sort_unstable();
            let ours: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
            assert!(ours.iter().all(|name| names.contains(name)), "{names:?}");
        }
    }
}
