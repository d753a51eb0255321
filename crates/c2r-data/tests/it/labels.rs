//! Labels of the sets of others: hard beside soft, dtypes, and what a file does not say.

use c2r_base::artifact::TensorFile;
use c2r_data::{DataError, ImportOptions, PixelValues, SyntheticSet, arrays::to_tensor, import};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::import_options;

/// Twenty grey images, and what is given.
fn with<const N: usize>(named: [(&str, &Tensor); N]) -> TensorFile {
    let mut file = TensorFile::default();
    let images = Tensor::arange(20 * 64, (Kind::Float, Device::Cpu)).view([20, 1, 8, 8]) / 1280.0;
    file.tensors.insert("images".to_owned(), images);
    file.tensors.extend(named.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())));
    file
}

fn imported(file: &TensorFile, options: &ImportOptions) -> Result<(SyntheticSet, Vec<String>), DataError> {
    import(file, None, &c2r_data::spec("digits").unwrap(), options, json!({"file": "x"}))
}

/// The reason of an import that is refused.
fn refused(file: &TensorFile, options: &ImportOptions) -> String {
    match imported(file, options) {
        Err(DataError::Import(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn classes() -> Tensor {
    Tensor::arange(10, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(2, 0, None)
}

/// Rows of probabilities whose largest is that of the class: 0.82 and nine of 0.02.
fn rows() -> Tensor {
    classes().one_hot(10).to_kind(Kind::Double) * 0.8 + 0.02
}

/// Rounded to bf16, whose values have 8 binary digits: 0.82 is 0.8203125 and 0.02 is 0.02001953125, so a row sums to
/// 1.00048828125. Rows of other values miss 1 by up to 2^-8.
#[test]
fn tolerances_follow_the_dtype() {
    let exact = rows();
    let soft = |tensor: &Tensor| {
        let set = imported(&with([("soft_labels", tensor)]), &import_options()).unwrap().0;
        to_tensor(set.soft_labels.unwrap().view()).to_kind(Kind::Double)
    };
    let distance = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(distance(&soft(&exact.to_kind(Kind::BFloat16)), &exact) < 4e-4);

    let uneven = classes().one_hot(10).to_kind(Kind::Double) * 0.7 + 0.03;
    let rounded = uneven.to_kind(Kind::BFloat16);
    let off = (rounded.to_kind(Kind::Double).sum_dim_intlist([1i64].as_slice(), false, Kind::Double) - 1.0)
        .abs()
        .max()
        .double_value(&[]);
    // 0.73 is 0.73046875 and 0.03 is 0.030029296875: the row sums to 1.000732421875. Scaled by 1.005,
    // it is 0.734375 and nine of 0.0301513671875, 1.0057373046875.
    assert!((off - 0.000_732_421_875).abs() < 1e-12, "{off}");
    let scaled = (&uneven * 1.005).to_kind(Kind::BFloat16);
    assert!(distance(&soft(&scaled), &uneven) < 4e-3);
    let sums = soft(&scaled).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    assert!((sums - 1.0).abs().max().double_value(&[]) < 1e-6, "divided by their sums");
    // In f32, rounding does not explain the same rows.
    let reason = refused(&with([("soft_labels", &(&uneven * 1.005).to_kind(Kind::Float))]), &import_options());
    assert!(reason.contains("miss a sum of 1 by up to 0.005") && reason.contains("divide each row by its sum"));
    assert!(!reason.contains("logits"), "{reason}");
}

#[test]
fn advice_is_right_where_it_is_followed() {
    let logits = ImportOptions { logits: true, ..import_options() };
    let of = |tensor: &Tensor, options: &ImportOptions| refused(&with([("soft_labels", tensor)]), options);
    let log = rows().log();
    for rows in [&rows() * 20.0 - 8.0, log.shallow_clone()] {
        assert!(of(&rows, &import_options()).contains("logits? Use option `logits`"));
        imported(&with([("soft_labels", &rows)]), &logits).unwrap();
    }
    let set = imported(&with([("soft_labels", &log)]), &logits).unwrap().0;
    let found = to_tensor(set.soft_labels.unwrap().view());
    assert!((found - rows()).abs().max().double_value(&[]) < 1e-6, "log-probabilities come back");
    // Probabilities in bf16, and percent.
    assert!(of(&rows().to_kind(Kind::BFloat16), &logits).contains("leave option `logits` out"));
    let percent = of(&(rows() * 100.0), &import_options());
    assert!(percent.contains("divide each row by its sum") && !percent.contains("logits"), "{percent}");
    // Centred targets of a regression are neither.
    assert!(of(&(rows() - 0.1), &import_options()).contains("targets of a regression are neither"));
}

#[test]
fn hard_labels_beside_soft_ones_must_agree() {
    // The largest probability is that of the class, in a row of equals, too.
    let (hard, soft) = (classes(), rows());
    let _ = soft.get(0).fill_(0.1);
    let file = with([("labels", &hard), ("soft_labels", &soft)]);
    let (set, notes) = imported(&file, &import_options()).unwrap();
    assert!(set.soft_labels.is_some() && to_tensor(set.labels.view()).equal(&hard));
    assert!(notes.iter().any(|note| note == "the class of each image from `labels`"), "{notes:?}");

    let file = with([("labels", &hard.flip([0])), ("soft_labels", &rows())]);
    let reason = refused(&file, &import_options());
    let expected = "`labels` and `soft_labels` disagree about the class of 20 of 20 images (images 0, 1, 2, ...)";
    assert!(reason.contains(expected) && reason.contains("option `labels NAME`"), "{reason}");
    let named = |name: &str| ImportOptions { labels: Some(name.into()), ..import_options() };
    let (set, notes) = imported(&file, &named("labels")).unwrap();
    assert!(set.soft_labels.is_none() && to_tensor(set.labels.view()).equal(&hard.flip([0])));
    assert_eq!(notes.last().unwrap(), "not used: `soft_labels`");
    let (set, _) = imported(&file, &named("soft_labels")).unwrap();
    assert!(to_tensor(set.labels.view()).equal(&hard));

    let both = with([("labels", &hard), ("y", &hard.flip([0]))]);
    assert!(refused(&both, &import_options()).contains("`labels` and `y` differ"));
    imported(&with([("labels", &hard), ("y", &hard)]), &import_options()).unwrap();
}

#[test]
fn classes_and_counts_are_not_guessed() {
    let reason = refused(&with([("soft_labels", &rows().full_like(0.1))]), &import_options());
    assert!(
        reason.contains("does not determine the class of 20 images") && reason.contains("option `grouped`"),
        "{reason}"
    );
    let uneven = rows();
    uneven.get(0).copy_(&uneven.get(2));
    let reason = refused(&with([("soft_labels", &uneven)]), &import_options());
    assert!(reason.contains("class 0 (`0`) has 1 images, not 2") && reason.contains("option `grouped`"), "{reason}");
    let hard = classes();
    let _ = hard.get(0).fill_(1);
    let reason = refused(&with([("labels", &hard)]), &import_options());
    assert!(reason.contains("class 0 (`0`) has 1 images, not 2") && !reason.contains("grouped"), "{reason}");
}

#[test]
fn images_are_told_by_name_or_not_at_all() {
    let mut file = with([("labels", &classes())]);
    let images = file.tensors["images"].shallow_clone();
    file.tensors.insert("images_init".to_owned(), images.shallow_clone());
    file.header.insert("lr".to_owned(), "0.01".to_owned());
    file.header.insert("format".to_owned(), "pt".to_owned());
    let notes = imported(&file, &import_options()).unwrap().1;
    assert!(notes[0].contains("images from `images`"), "{notes:?}");
    assert_eq!(notes.last().unwrap(), "not used: `images_init`, `lr`");
    file.tensors.insert("data[0][0]".to_owned(), images);
    assert!(refused(&file, &import_options()).contains("which tensor has the images? Use option `images NAME`"));
}

/// White is 2.228 here, which in bf16 is 2.234375, of which 0.0016 is left above 1: no pixel left the range.
#[test]
fn rounding_of_normalized_pixels_follows_the_dtype() {
    let normalized = ImportOptions { values: PixelValues::normalized("0.443/0.25").unwrap(), ..import_options() };
    let mut file = with([("labels", &classes())]);
    let mut of = |white: f64, kind: Kind| {
        let images = Tensor::full([20, 1, 8, 8], white, (Kind::Float, Device::Cpu));
        let _ = images.get(1).fill_(0.5);
        file.tensors.insert("images".to_owned(), ((images - 0.443) / 0.25).to_kind(kind));
        imported(&file, &normalized).map(|(set, _)| set.header.origin().unwrap().clamped)
    };
    assert_eq!(of(1.0, Kind::BFloat16).unwrap(), None);
    assert_eq!(of(1.0, Kind::Half).unwrap(), None);
    let error = of(1.0016, Kind::Float).unwrap_err().to_string();
    assert!(error.contains("lie outside [0, 1], from 0.500 to 1.002"), "{error}");
    assert!(of(1.006, Kind::BFloat16).is_err());
}
