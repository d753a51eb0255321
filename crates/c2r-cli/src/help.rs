//! What the help of several commands shares: texts, and the values that an option takes.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// For `--dataset`.
pub(crate) const DATASET: &str = "Dataset: digits (built in), cifar10, cifar100, tiny-imagenet, imagenette, imagewoof, \
                                  imagefruit, imagemeow, imagesquawk, imageyellow, or folder:PATH";
/// For `--dataset`, after [`DATASET`].
pub(crate) const ABOUT_DATASETS: &str = "imagenette@64 is imagenette at 64x64 pixels, and so on. `cargo xtask download --list` \
                                         shows sizes and licences; docs/datasets.md shows the layout of folder:PATH.";
/// For `--model`.
pub(crate) const MODEL: &str = "Architecture: ConvNet-D3-W128-IN (depth D1 to D6, any width, IN or NONE), ResNet18-IN, \
                                VGG11-IN or AlexNet-NONE";

/// A short text and more, for `--help`.
pub(crate) fn long(short: &str, more: &str) -> String {
    format!("{short}\n\n{more}")
}

/// Takes one of `values`, each with its name and its help.
pub(crate) fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    values: [(T, &'static str, &'static str); N],
) -> impl TypedValueParser<Value = T> {
    let shown = values.map(|(_, name, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(shown).map(move |text| {
        let named = values.iter().find(|(_, name, _)| name.eq_ignore_ascii_case(&text));
        named.expect("clap lets no other name through").0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dataset_is_named() {
        let names = DATASET.split([' ', ',']).collect::<Vec<_>>();
        c2r_data::registry().iter().for_each(|spec| assert!(names.contains(&spec.name.as_str()), "{}", spec.name));
    }
}
