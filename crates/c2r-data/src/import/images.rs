//! The images of a foreign file as pixels.

use c2r_base::artifact::TensorFile;
use tch::{Kind, Tensor};

use super::options::{IMPORT_DOUBT, ImportOptions, PixelValues, contents, named, usual_values, wrong};
use crate::{DataError, DatasetSpec, synthetic::Clamped};

/// How far a pixel may be outside `[0, 1]` and still be rounding (of f16, or of undoing a normalization).
const ROUNDING: f64 = 1e-3;
/// Part of the values that may be cut off where nothing was declared as normalized. Neither rounding nor optimizing pixels past
/// their range explains more. Ours; of values that were normalized to mean 0, about half are below 0.
const CLAMPED_UNDECLARED: f64 = 0.1;
/// Part of the values that may be cut off without a doubt where something was undone. Of DC, DSA and DM some values leave the
/// range in earnest, but a tenth is what a wrong scale cuts off. Ours.
const CLAMPED_MANY: f64 = 0.1;
/// Another normalization is named if at least this part is cut off, which is also what tables note, ...
const CLAMPED_COMPARED: f64 = 0.01;
/// ... and if it leaves at most this share of that outside. Ours.
const CLEARLY_FEWER: f64 = 0.5;
/// Names that images go by. `data[0][0]` is the layout of DC, DSA and DM; further entries are further experiments.
const USUAL: [&str; 2] = ["images", "data[0][0]"];

/// The tensor with the images, and its name.
pub(super) fn find_images<'a>(
    file: &'a TensorFile,
    options: &ImportOptions,
) -> Result<(String, &'a Tensor), DataError> {
    let found = |name: &str| Ok((name.to_owned(), named(file, name)?));
    if let Some(name) = &options.images {
        return found(name);
    }
    let usual: Vec<&str> = USUAL.into_iter().filter(|&name| file.tensors.contains_key(name)).collect();
    if let [known] = usual[..] {
        return found(known);
    }
    let candidates: Vec<&String> =
        file.tensors.iter().filter(|(_, tensor)| tensor.dim() == 4).map(|(name, _)| name).collect();
    match candidates[..] {
        [only] => found(only),
        _ => wrong(format!("which tensor has the images? Use option `images NAME`; there are {}", contents(file))),
    }
}

/// f32 `[N, C, H, W]` in `[0, 1]`, and what was cut off for it.
pub(super) fn pixels(
    images: &Tensor,
    spec: &DatasetSpec,
    options: &ImportOptions,
    notes: &mut Vec<String>,
) -> Result<(Tensor, Option<Clamped>), DataError> {
    let mut images = channels_second(images, spec, options)?;
    let bytes = images.kind() == Kind::Uint8;
    if bytes {
        check_bytes(&images, options)?;
    } else if !images.is_floating_point() {
        return wrong(format!("images must be floats or u8, these are {:?}", images.kind()));
    }
    if options.bgr && spec.channels == 1 {
        return wrong(format!("images of {} have one channel: leave option `bgr` out", spec.name));
    }
    if options.bgr {
        images = images.flip([1]);
        notes.push("channels were reversed: blue, green, red to red, green, blue".to_owned());
    }
    if bytes {
        return Ok(((images.to_kind(Kind::Float) / 255.0).contiguous(), None));
    }
    let raw = images.to_kind(Kind::Double);
    if raw.isfinite().all().int64_value(&[]) == 0 {
        return wrong("images have values that are not finite".to_owned());
    }
    let values = match &options.values {
        PixelValues::Unit => raw.shallow_clone(),
        PixelValues::Bytes => of_255(&raw)?,
        PixelValues::Normalized { mean, std } => {
            notes.push(format!("the normalization was undone: pixel = value * {std:?} + {mean:?}"));
            undone(&raw, mean, std)?
        }
    };
    let cut = cut_off(&values, rounding(images.kind(), &raw, &options.values));
    let normalized = matches!(options.values, PixelValues::Normalized { .. });
    if let Some(cut) = &cut {
        let fewer = leaving_fewer(&raw, images.kind(), cut, spec).filter(|_| options.values != PixelValues::Bytes);
        if !options.clamp || (!normalized && cut.part > CLAMPED_UNDECLARED) {
            let fewer = fewer.map_or_else(String::new, |fewer| format!("; {fewer}"));
            return wrong(format!("{cut}{}{fewer}", hint(options, cut)));
        }
        notes.push(format!("{cut}: clipped"));
        let many = (normalized && cut.part > CLAMPED_MANY).then(|| {
            format!(
                "over {:.0} % of the values were clipped: the set may have been normalized in another way; look at the images",
                100.0 * CLAMPED_MANY
            )
        });
        let fewer = fewer.filter(|_| normalized);
        notes.extend(many.into_iter().chain(fewer).map(|doubt| format!("{}{doubt}", IMPORT_DOUBT)));
    }
    Ok((values.clamp(0.0, 1.0).to_kind(Kind::Float).contiguous(), cut))
}

/// The images as `[N, C, H, W]` of the dataset.
fn channels_second(stored: &Tensor, spec: &DatasetSpec, options: &ImportOptions) -> Result<Tensor, DataError> {
    let images = if options.nhwc && stored.dim() == 4 { stored.permute([0, 3, 1, 2]) } else { stored.shallow_clone() };
    let size = images.size();
    if size.len() == 4 && size[1..] == spec.shape() && size[0] > 0 {
        return Ok(images);
    }
    let [c, h, w] = spec.shape();
    let stored = stored.size();
    let hint = if !options.nhwc && size.len() == 4 && size[1..] == [h, w, c] {
        "; the channels come last: use option `nhwc`"
    } else if options.nhwc && stored.len() == 4 && stored[1..] == [c, h, w] {
        " after option `nhwc`: the channels come second already, leave it out"
    } else {
        ""
    };
    wrong(format!("images of {} are [N, {c}, {h}, {w}], these are {size:?}{hint}", spec.name))
}

/// Refuses options that do not go with bytes, and bytes that hold only 0 and 1.
fn check_bytes(images: &Tensor, options: &ImportOptions) -> Result<(), DataError> {
    if options.values != PixelValues::Unit {
        return wrong(
            "images are bytes, which are pixels already: leave option `normalized` and option `of-255` out".to_owned(),
        );
    }
    if images.max().int64_value(&[]) == 1 {
        return wrong(
            "the largest value is 1, and bytes go to 255: nearly black images; if 1 means white, store floats in [0, 1]"
                .to_owned(),
        );
    }
    Ok(())
}

/// Floats in `[0, 255]` as pixels.
fn of_255(raw: &Tensor) -> Result<Tensor, DataError> {
    let high = raw.max().double_value(&[]);
    if high <= 1.0 + ROUNDING && raw.any().int64_value(&[]) == 1 {
        return wrong(format!(
            "the largest value is {high:.3}, and option `of-255` divides by 255: the images would be nearly black; leave it out"
        ));
    }
    Ok(raw / 255.0)
}

/// Pixels that were normalized.
fn undone(raw: &Tensor, mean: &[f64], std: &[f64]) -> Result<Tensor, DataError> {
    let (given, there) = (mean.len(), raw.size()[1]);
    if given as i64 != there {
        return wrong(format!("the normalization has {given} channels, the images have {there}"));
    }
    if raw.min().double_value(&[]) >= 0.0 && raw.max().double_value(&[]) <= 1.0 {
        return wrong("all values are in [0, 1]: not normalized, leave option `normalized` out".to_owned());
    }
    let channel = |values: &[f64]| Tensor::from_slice(values).view([1, -1, 1, 1]);
    Ok(raw * channel(std) + channel(mean))
}

/// What is outside `[0, 1]` by more than `rounding`.
fn cut_off(values: &Tensor, rounding: f64) -> Option<Clamped> {
    let (low, high) = (values.min().double_value(&[]), values.max().double_value(&[]));
    if low >= -rounding && high <= 1.0 + rounding {
        return None;
    }
    let outside = values.lt(-rounding).logical_or(&values.gt(1.0 + rounding)).sum(Kind::Int64).int64_value(&[]);
    Some(Clamped { part: outside as f64 / values.numel() as f64, low, high })
}

/// Which of the dataset's usual normalizations leave clearly fewer values outside than what was declared, in words.
fn leaving_fewer(raw: &Tensor, kind: Kind, cut: &Clamped, spec: &DatasetSpec) -> Option<String> {
    if cut.part < CLAMPED_COMPARED {
        return None;
    }
    let part = |values: &PixelValues| {
        let undone = match values {
            PixelValues::Normalized { mean, std } => undone(raw, mean, std).ok()?,
            PixelValues::Unit | PixelValues::Bytes => raw.shallow_clone(),
        };
        Some(cut_off(&undone, rounding(kind, raw, values)).map_or(0.0, |cut| cut.part))
    };
    let parts = usual_values(spec).into_iter().filter_map(|(name, values)| Some((name, part(&values)?)));
    let fewer = parts.filter(|(_, other)| *other <= CLEARLY_FEWER * cut.part);
    let fewer: Vec<String> = fewer.map(|(name, part)| format!("{name} ({:.1} %)", 100.0 * part)).collect();
    (!fewer.is_empty()).then(|| {
        format!(
            "fewer values would lie outside with {} than with what was given ({:.1} %); if the set was made with one of these, name \
             that one",
            fewer.join(" or "),
            100.0 * cut.part
        )
    })
}

/// How far rounding moves a pixel: the larger a normalized value is, the more in bf16 and f16.
fn rounding(kind: Kind, raw: &Tensor, values: &PixelValues) -> f64 {
    let share = match kind {
        Kind::BFloat16 => f64::powi(2.0, -8),
        Kind::Half => f64::powi(2.0, -11),
        _ => 0.0,
    };
    let scale = match values {
        PixelValues::Normalized { std, .. } => std.iter().copied().fold(0.0, f64::max),
        PixelValues::Unit | PixelValues::Bytes => 0.0,
    };
    (share * scale * raw.abs().max().double_value(&[])).max(ROUNDING)
}

/// What to say where values are not pixels.
fn hint(options: &ImportOptions, cut: &Clamped) -> String {
    let many = cut.part > CLAMPED_UNDECLARED;
    match options.values {
        PixelValues::Unit if cut.low >= 0.0 && cut.high > 2.0 && cut.high <= 255.0 => {
            ": bytes as floats? Use option `of-255`".to_owned()
        }
        PixelValues::Unit if many => {
            let limit = if options.clamp {
                format!(", and option `clamp` clips {:.0} % at most", 100.0 * CLAMPED_UNDECLARED)
            } else {
                String::new()
            };
            format!(": these are not pixels{limit}; normalized? Use option `normalized MEAN/STD`")
        }
        PixelValues::Unit => {
            ": normalized? Use option `normalized MEAN/STD`; pixels that were optimized past their range? Use option `clamp`, which clips them"
                .to_owned()
        }
        PixelValues::Bytes if many => {
            ", after dividing by 255: these are not 0 to 255; normalized? Use option `normalized MEAN/STD` instead of option `of-255`"
                .to_owned()
        }
        _ => {
            ", after undoing what was declared: optimized images may leave the range of pixels, and option `clamp` clips them; many values outside mean another normalization"
                .to_owned()
        }
    }
}
