//! What is wrong with a file or a model of PyTorch, and what to write in Python instead.

use std::{fs::File, io::Read, path::Path};

use c2r_base::grad::message_of;
use tch::{CModule, Device, IValue, Kind, TchError, Tensor};
use zip::ZipArchive;

/// What makes TorchScript of a model.
const EXPORT: &str = "in Python, torch.jit.script(model.eval()).save(FILE)";
/// A batch size that became a constant.
pub(super) const FIXED_BATCH: &str = "torch.jit.trace wrote the number of images into it, as it does where Python reads it \
    (len(x), int(x.shape[0])); in Python, write x.flatten(1) instead of x.view(n, -1), or export it with \
    torch.jit.script(model.eval()).save(FILE)";
/// A model of two classes with one output.
pub(super) const ONE_OUTPUT: &str =
    "attacks need one logit for each class; for two classes, return torch.cat([torch.zeros_like(z), z], 1)";

/// The line that says what happened: TorchScript's errors begin with its source and end with a list of backends.
pub(super) fn message(error: &TchError) -> String {
    let text = message_of(error);
    let is_error = |line: &&str| {
        line.split_once(": ").is_some_and(|(kind, _)| {
            !kind.contains(' ') && ["Error", "Exception"].iter().any(|ending| kind.ends_with(ending))
        })
    };
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.clone().rfind(is_error).or_else(|| lines.next()).unwrap_or_default().to_owned()
}

/// What a file of PyTorch is that is not TorchScript, if it is one.
pub(super) fn instead(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut start = [0; 2];
    file.read_exact(&mut start).ok()?;
    // A pickle of protocol 2 or later.
    if start[0] == 0x80 && start[1] >= 2 {
        return Some(format!(
            "it is a pickle, such as a file of torch.save in the format before torch 1.6, not TorchScript: {EXPORT}"
        ));
    }
    let archive = ZipArchive::new(File::open(path).ok()?).ok()?;
    let has = |name: &str| archive.file_names().any(|entry| entry == name || entry.ends_with(&format!("/{name}")));
    let kind = if has("constants.pkl") {
        return None;
    } else if has("models/model.json") || has("serialized_exported_program.json") {
        "a program of torch.export (.pt2)"
    } else if has("data.pkl") {
        "a file of torch.save (a state_dict or a pickled module)"
    } else {
        return None;
    };
    Some(format!("it is {kind}, not TorchScript: {EXPORT}"))
}

/// What to write in Python so that a model that failed with `message` on `images` works.
pub(super) fn hint(module: &CModule, images: &Tensor, message: &str, device: Device) -> Option<String> {
    if message.contains("did not return a tensor") {
        let returned = module.forward_is(&[IValue::Tensor(images.copy())]);
        return Some(returned.map_or_else(|_| "return one tensor".to_owned(), |value| one_tensor(&value)));
    }
    let parameters = module.named_parameters().unwrap_or_default();
    let other = parameters
        .iter()
        .map(|(_, parameter)| parameter.kind())
        .find(|kind| !matches!(kind, Kind::Float) && matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Double));
    if let Some(kind) = other {
        return Some(format!("its parameters are {kind:?} and images are Float; call model.float() before torch.jit"));
    }
    if device == Device::Cpu && message.to_lowercase().contains("cuda") {
        return Some("it was traced on a GPU; call model.cpu() before torch.jit, or give --device cuda".to_owned());
    }
    // How libtorch complains about dtypes where no parameter shows them.
    let is_about_dtypes = ["dtype", "scalar type"].iter().any(|words| message.contains(words));
    is_about_dtypes.then(|| "images are Float; call model.float() before torch.jit".to_owned())
}

/// How to return the logits alone.
fn one_tensor(returned: &IValue) -> String {
    match returned {
        IValue::Tuple(items) => {
            format!("it returns a tuple of {}; return the logits alone: return out[0]", items.len())
        }
        IValue::TensorList(items) => {
            format!("it returns a list of {}; return the logits alone: return out[0]", items.len())
        }
        IValue::GenericList(items) => {
            format!("it returns a list of {}; return the logits alone: return out[0]", items.len())
        }
        IValue::GenericDict(entries) => {
            let keys: Vec<String> = entries
                .iter()
                .map(|(key, _)| match key {
                    IValue::String(key) => format!("\"{key}\""),
                    _ => "?".to_owned(),
                })
                .collect();
            let logits = keys.iter().find(|key| key.contains("logit")).or(keys.first());
            let logits = logits.map_or("\"logits\"", String::as_str);
            format!("it returns a dict of {}; return the logits alone: return out[{logits}]", keys.join(", "))
        }
        _ => "it does not return a tensor; return the logits, [N, K]".to_owned(),
    }
}

/// What to write so that `n` images give `[n, K]` where they gave `size`; empty where that is not known.
pub(super) fn shape(n: i64, size: &[i64]) -> String {
    let hint = match *size {
        [_] if n == 1 => "in Python, write .flatten(1) instead of .squeeze(), which drops the batch of one image, too",
        [_] => "return one logit for each class, [N, K], and not the class",
        [_, _, 1, 1] => "in Python, end its forward with .flatten(1)",
        [other, _] if other != n => FIXED_BATCH,
        _ => return String::new(),
    };
    format!("; {hint}")
}
