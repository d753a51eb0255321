//! Options for networks that PyTorch saved as a `state_dict`, and how they are read.

use std::path::PathBuf;

use anyhow::Context;
use c2r_base::artifact::TensorFile;
use c2r_data::{FileKind, PixelValues};
use c2r_models::{Architecture, ModelInput, StateDict};
use c2r_run::{
    exit::{self, OrExit},
    terminal::counted,
};
use clap::builder::TypedValueParser;
use tch::Device;

/// Left-out tensors that a note names.
const NAMED: usize = 5;
/// What a network expects that normalizes by itself.
pub(crate) const UNNORMALIZED: &str = "pixels in [0, 1]";
/// What to write in Python where a file holds more than tensors.
const ONLY_PARAMETERS: &str = "to save only the parameters, run this in the Python that made the network: \
                               torch.save(net.state_dict(), 'net.pt')";

/// A network as a `state_dict`.
#[derive(clap::Args, Clone)]
pub(crate) struct StateDictArgs {
    /// PyTorch state_dict (.pt, .pth or safetensors) of a network that DC, DSA, DM or MTT use (those under --arch)
    ///
    /// Names may begin with `module.` or
    /// `_orig_mod.`. The tensors may be at the top or under state_dict, model_state_dict, model, net or network.
    #[arg(long, value_name = "FILE", requires = "arch")]
    pub(crate) state_dict: Option<PathBuf>,

    /// Architecture of --state-dict, e.g. ConvNet-D3-W128-IN or ResNet18-BN
    ///
    /// ConvNet-D3-W128-IN (depth D1 to D6, any width; IN, BN, GN, LN or NONE; -MP or -NP at the end for max or no pooling),
    /// ResNet18-IN or -BN, ResNet18AP-IN or -BN, VGG11-IN or -BN, AlexNet-NONE.
    #[arg(long, value_name = "ARCH", requires = "state_dict")]
    pub(crate) arch: Option<Architecture>,

    /// Normalization that --state-dict expects: cifar10-dd, a dataset's name, or MEAN/STD [default: none]
    ///
    /// The network gets (pixel - mean) / std; pixels themselves are always in [0, 1]. cifar10-dd is the normalization of DC, DSA,
    /// DM and MTT. MEAN and STD have a number per channel, as in 0.5,0.5,0.5/0.25,0.25,0.25.
    #[arg(long, value_name = "WHAT", requires = "state_dict", value_parser = normalized())]
    pub(crate) normalized: Option<Normalized>,
}

/// A normalization and its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Normalized {
    pub(crate) name: String,
    mean: Vec<f64>,
    std: Vec<f64>,
}

fn normalized() -> impl TypedValueParser<Value = Normalized> {
    clap::builder::StringValueParser::new().try_map(|name| match PixelValues::normalized(&name) {
        Ok(PixelValues::Normalized { mean, std }) => Ok(Normalized { name, mean, std }),
        Ok(_) => Err("it does not name a mean and a deviation".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

impl StateDictArgs {
    /// Reads the network for images of `shape` (`[C, H, W]`), in as many classes as the images have, where that is known.
    /// Returns notes on what was left out, too.
    pub(crate) fn load(
        &self,
        shape: [i64; 3],
        n_classes: Option<usize>,
        device: Device,
    ) -> anyhow::Result<(StateDict, Vec<String>)> {
        let (path, architecture) =
            self.state_dict.as_deref().zip(self.arch).expect("clap requires both where this is called");
        let name = path.display();
        if FileKind::of(path).or_exit(exit::DATA)? == FileKind::TorchScript {
            return exit::fail(exit::USAGE, format!("{name} is a TorchScript model: use --model {name}"));
        }
        let file = c2r_data::read_tensors(path)
            .with_context(|| format!("--state-dict takes a file of named tensors; {ONLY_PARAMETERS}"))
            .or_exit(exit::DATA)?;
        if file.header.get("format").is_some_and(|format| format == "c2r-model") {
            return exit::fail(exit::USAGE, format!("{name} is a network that c2r trained: use --checkpoint {name}"));
        }
        let found = StateDict::classes_of(&file.tensors);
        let Some(n_classes) = n_classes.map(|n| n as i64).or(found) else {
            let reason =
                "the number of classes is unknown, because the file has no classifier.bias, fc.bias or linear.bias";
            return exit::fail(exit::DATA, format!("{name}: {reason}; the file has {}", names(&file)));
        };
        let [channels, height, width] = shape;
        let per_channel = |value: f64| vec![value; channels as usize];
        let (mean, std) = match &self.normalized {
            Some(normalized) => (normalized.mean.clone(), normalized.std.clone()),
            None => (per_channel(0.0), per_channel(1.0)),
        };
        let input = ModelInput { channels, height, width, n_classes, mean, std };
        let network = StateDict::new(architecture, &input, &file.tensors, device)
            .with_context(|| name.to_string())
            .or_exit(exit::DATA)?;
        let notes = left_out(&network).into_iter().collect();
        Ok((network, notes))
    }

    /// What the network expects, in words.
    pub(crate) fn expects(&self) -> String {
        let name = self.normalized.as_ref().map(|normalized| normalized.name.as_str());
        name.map_or_else(|| UNNORMALIZED.to_owned(), |name| format!("pixels normalized by {name}"))
    }
}

fn left_out(network: &StateDict) -> Option<String> {
    let names = network.left_out();
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > NAMED { ", ..." } else { "" };
    (!names.is_empty()).then(|| {
        let n = counted(names.len(), "tensor");
        format!("ignored {n} of the file that are not parameters: {shown}{more}")
    })
}

fn names(file: &TensorFile) -> String {
    file.tensors.keys().take(4 * NAMED).cloned().collect::<Vec<_>>().join(", ")
}
