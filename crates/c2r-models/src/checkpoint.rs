//! Networks as files: safetensors whose header says what the network is.
//!
//! Header: `format` (`c2r-model`), `schema_version` (`1`), `spec` (e.g. `ConvNet-D3-W128-IN`), `input`
//! ([`ModelInput`] as JSON), and whatever the caller adds. A file fits exactly or is refused.

use std::{collections::BTreeMap, path::Path};

use c2r_base::artifact::{ArtifactError, TensorFile};
use tch::{Device, Tensor};

use crate::{error::ModelError, input::ModelInput, model::Model, network, spec::ModelSpec};

/// The `schema_version` that [`save`] writes and [`load`] reads.
pub const SCHEMA_VERSION: u32 = 1;

const FORMAT: &str = "c2r-model";

/// A network with no more values than this is made before it is compared with the file, so that an error can name the
/// tensors that differ; a larger one must be in the file.
const MOST_UNFOUNDED: i64 = 1 << 24;

/// Header names that [`save`] fills itself.
const RESERVED: [&str; 4] = ["format", "schema_version", "spec", "input"];

/// Writes `model` atomically. Equal networks and headers give equal bytes.
///
/// * `extra_header`: further texts, e.g. the run's config and subject as JSON.
///
/// # Errors
/// [`ModelError::Artifact`] if the file cannot be written.
///
/// # Panics
/// If `extra_header` uses one of the names that describe the network.
pub fn save(path: &Path, model: &Model, extra_header: BTreeMap<String, String>) -> Result<(), ModelError> {
    let mut header = extra_header;
    let input = serde_json::to_string(model.input()).expect("a plain struct is JSON");
    let own = [FORMAT.to_owned(), SCHEMA_VERSION.to_string(), model.spec().to_string(), input];
    for (name, value) in RESERVED.into_iter().zip(own) {
        let taken = header.insert(name.to_owned(), value);
        assert!(taken.is_none(), "the header name `{name}` describes the network and cannot be set by the caller");
    }
    Ok(TensorFile { header, tensors: model.state(), ..TensorFile::default() }.write(path)?)
}

/// Reads a network and the caller's header texts.
///
/// # Errors
/// [`ModelError::Artifact`] if the file cannot be read or its header is not that of a network;
/// [`ModelError::Checkpoint`] if tensors and header disagree.
pub fn load(path: &Path, device: Device) -> Result<(Model, BTreeMap<String, String>), ModelError> {
    let TensorFile { mut header, tensors, .. } = TensorFile::read(path)?;
    let wrong = |reason: String| ArtifactError::format(path, "c2r model", reason);
    let mut take = |name: &str| {
        header.remove(name).ok_or_else(|| wrong(format!("its header has no `{name}`; was it written by c2r train?")))
    };
    let [format, version, spec, input] = RESERVED.map(&mut take);
    let (format, version, spec, input) = (format?, version?, spec?, input?);
    if format != FORMAT {
        return Err(wrong(format!("its format is `{format}`, not `{FORMAT}`")).into());
    }
    if version != SCHEMA_VERSION.to_string() {
        return Err(wrong(format!("its schema_version is {version}; this c2r reads {SCHEMA_VERSION}")).into());
    }
    let spec: ModelSpec = spec.parse().map_err(|error| wrong(format!("{error}")))?;
    let input: ModelInput =
        serde_json::from_str(&input).map_err(|error| wrong(format!("`input` in its header: {error}")))?;
    let inside = |source| ModelError::Checkpoint { path: path.to_owned(), source: Box::new(source) };
    input.check().map_err(inside)?;
    let (declared, found) =
        (n_values(&spec, &input).map_err(inside)?, tensors.values().map(Tensor::numel).sum::<usize>() as i64);
    if declared > found && declared > MOST_UNFOUNDED {
        return Err(wrong(format!("{spec} for its `input` has {declared} values, the file {found}")).into());
    }
    let model = Model::zeros(&spec, &input, device).map_err(inside)?;
    model.load_state(&tensors).map_err(inside)?;
    Ok((model, header))
}

/// Number of values of the parameters; `input` was checked.
fn n_values(spec: &ModelSpec, input: &ModelInput) -> Result<i64, ModelError> {
    let parameters = network::parameters(spec, input)?;
    Ok(parameters.iter().map(|parameter| parameter.shape.iter().product::<i64>()).sum())
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use c2r_base::Seed;
    use c2r_testkit::assert_same_bytes;
    use tch::Kind;

    use super::*;

    fn model() -> Model {
        let input = ModelInput { channels: 1, height: 8, width: 8, n_classes: 10, mean: vec![0.3], std: vec![0.4] };
        Model::new(&ModelSpec::convnet(2, 8), &input, Seed::new(4), Device::Cpu).unwrap()
    }

    #[test]
    fn round_trip_keeps_every_bit_and_the_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let extra = BTreeMap::from([("subject".to_owned(), "{}".to_owned())]);
        save(&path, &model(), extra.clone()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (back, header) = load(&path, Device::Cpu).unwrap();
        assert_eq!(header, extra);
        assert_eq!((back.spec(), back.input()), (model().spec(), model().input()));
        for (name, tensor) in model().state() {
            assert_same_bytes(&name, &back.state()[&name], &tensor);
        }
        save(&path, &back, extra).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    fn message_after(change: impl FnOnce(&mut TensorFile)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save(&path, &model(), BTreeMap::new()).unwrap();
        let mut file = TensorFile::read(&path).unwrap();
        change(&mut file);
        file.write(&path).unwrap();
        let error = load(&path, Device::Cpu).unwrap_err();
        let message = format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default());
        assert!(message.contains("model.safetensors"), "{message}");
        message
    }

    #[test]
    fn what_does_not_fit_is_named() {
        type Case<'a> = (&'a str, Box<dyn FnOnce(&mut TensorFile)>);
        let set = |name: &str, value: &str| -> Box<dyn FnOnce(&mut TensorFile)> {
            let (name, value) = (name.to_owned(), value.to_owned());
            Box::new(move |file| drop(file.header.insert(name, value)))
        };
        let input = |changes: &str| {
            let mut input = serde_json::to_value(model().input()).unwrap();
            let changes: serde_json::Map<_, _> = serde_json::from_str(&format!("{{{changes}}}")).unwrap();
            input.as_object_mut().unwrap().extend(changes);
            input.to_string()
        };
        let cases: Vec<Case<'_>> = vec![
            ("`format`", Box::new(|file| drop(file.header.remove("format")))),
            ("schema_version is 2", set("schema_version", "2")),
            ("`Net`", set("spec", "Net-D2-W8-IN")),
            ("[8, 8, 3, 3] where [16, 16, 3, 3]", set("spec", "ConvNet-D2-W16-IN")),
            ("`features.8.weight` is missing", set("spec", "ConvNet-D3-W8-IN")),
            ("`features.5.bias` is not a parameter", set("spec", "ConvNet-D2-W8-NONE")),
            ("at most 4096 to a side", set("input", &input("\"height\":1099511627776"))),
            (
                "has 8589936312 values, the file",
                set("input", &input("\"height\":4096,\"width\":4096,\"n-classes\":1024")),
            ),
            ("unknown field `colour`", set("input", r#"{"channels":1,"colour":2}"#)),
            ("`classifier.bias` is missing", Box::new(|file| drop(file.tensors.remove("classifier.bias")))),
            (
                "dtype Double",
                Box::new(|file| {
                    let double = file.tensors["classifier.bias"].to_kind(Kind::Double);
                    let _ = file.tensors.insert("classifier.bias".into(), double);
                }),
            ),
            ("`more`", Box::new(|file| drop(file.tensors.insert("more".into(), Tensor::from_slice(&[1f32]))))),
        ];
        for (expected, change) in cases {
            let message = message_after(change);
            assert!(message.contains(expected), "expected {expected} in: {message}");
        }
    }

    #[test]
    #[should_panic(expected = "`spec` describes the network")]
    fn the_caller_cannot_lie_about_the_network() {
        let folder = tempfile::tempdir().unwrap();
        let extra = BTreeMap::from([("spec".to_owned(), "ConvNet-D9".to_owned())]);
        let _ = save(&folder.path().join("x"), &model(), extra);
    }
}
