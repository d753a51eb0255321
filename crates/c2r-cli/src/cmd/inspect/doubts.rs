//! What looks wrong with images and labels, and on what evidence.

use std::collections::HashMap;

use c2r_base::artifact::TensorFile;
use c2r_data::{Dataset, DatasetSpec};
use c2r_run::terminal::counted;
use statrs::distribution::{Binomial, DiscreteCDF};
use tch::{Device, Kind, Tensor};

use super::report::{Report, range_of_counts};

/// Images per row of a picture.
pub(super) const GRID_COLUMNS: usize = 10;
/// Images with smaller sides are taken for filters of a network.
const SMALLEST_SIDE: i64 = 2;
/// Interleaved colours repeat every third value: neighbours then differ by more than values three apart. In photographs
/// it is the other way round, in noise both are equal.
const INTERLEAVED_RATIO: f64 = 0.85;
/// Values outside [0, 1] by less are rounding, which attacks clamp.
const ROUNDING: f64 = 1e-6;
/// A difference this many standard errors from 0 is not an accident.
const ERRORS_TO_TELL: f64 = 3.0;
/// Datasets whose red and blue differ by less have no order of channels to tell.
const LEAST_COLOUR: f64 = 0.01;
/// How unlikely so few agreeing labels must be.
const UNLIKELY: f64 = 1e-3;
/// Test images that measure how well the nearest class mean does.
const BASELINE_IMAGES: usize = 1000;

/// The dataset that images and labels are compared with.
pub(super) struct Reference {
    pub(super) spec: DatasetSpec,
    /// Its images, if they can be read.
    data: Option<Dataset>,
}

impl Reference {
    /// The dataset that the user named, or else `named`, with its images if they can be read.
    pub(super) fn of(report: &Report, named: &str) -> Option<Self> {
        let name = report.dataset.as_deref().unwrap_or(named);
        let data = c2r_data::load(name, report.data.as_deref()).ok();
        let spec = c2r_data::spec(name).ok().or_else(|| Some(data.as_ref()?.spec.clone()))?;
        Some(Self { spec, data })
    }
}

/// NaN and infinity.
pub(super) fn values(report: &mut Report, name: &str, tensor: &Tensor) {
    if tensor.is_floating_point() && tensor.isfinite().all().int64_value(&[]) == 0 {
        report.doubt(format!("{name} has values that are not finite (NaN or infinity)"));
    }
}

/// Whether a tensor of a file is meant as images: four dimensions, one or three channels, first or last.
pub(super) fn is_images(name: &str, tensor: &Tensor) -> bool {
    let size = tensor.size();
    let plausible = |c: i64, h: i64, w: i64| [1, 3].contains(&c) && h >= SMALLEST_SIDE && w >= SMALLEST_SIDE;
    !name.ends_with("weight")
        && tensor.numel() > 0
        && size.len() == 4
        && (plausible(size[1], size[2], size[3]) || plausible(size[3], size[1], size[2]))
}

/// Whether the channels come last.
fn is_nhwc(images: &Tensor) -> bool {
    let size = images.size();
    ![1, 3].contains(&size[1]) && [1, 3].contains(&size[3])
}

/// What goes wrong with stored images.
pub(super) fn images(report: &mut Report, name: &str, images: &Tensor, reference: Option<&Reference>) {
    if images.numel() == 0 {
        return;
    }
    let _no_grad = tch::no_grad_guard();
    values(report, name, images);
    let nhwc = is_nhwc(images);
    if nhwc {
        report.doubt(format!(
            "{name}: {:?} has the channels last, but c2r stores [N, C, H, W]; import it with --nhwc",
            images.size()
        ));
    }
    let images = if nhwc { images.permute([0, 3, 1, 2]) } else { images.shallow_clone() };
    let is_bytes = images.kind() == Kind::Uint8;
    let pixels = images.to_kind(Kind::Double).contiguous();
    let (low, high) = (pixels.min().double_value(&[]), pixels.max().double_value(&[]));
    if !is_bytes {
        if low < -ROUNDING {
            report.doubt(format!(
                "{name}: values down to {low:.3}, but c2r stores pixels in [0, 1]; if they are normalized, import it with \
                 --normalized"
            ));
        } else if high > 2.0 {
            report.doubt(format!(
                "{name}: values up to {high:.1}, but c2r stores pixels in [0, 1]; if they go from 0 to 255, import it with \
                 --of-255"
            ));
        } else if high > 1.0 + ROUNDING {
            report.doubt(format!(
                "{name}: values up to {high:.3}, but c2r stores pixels in [0, 1]; --clamp of `c2r import` clips them"
            ));
        }
    }
    let flat = pixels.flatten(1, -1);
    let spread = flat.amax([1i64].as_slice(), false) - flat.amin([1i64].as_slice(), false);
    let constant = spread.eq(0.0).sum(Kind::Int64).int64_value(&[]);
    if constant > 0 {
        let (n, have) = (counted(constant as usize, "image"), if constant == 1 { "has" } else { "have" });
        report.doubt(format!("{name}: {n} {have} the same value everywhere"));
    }
    let (n, length) = (flat.size()[0] as usize, flat.size()[1] as usize);
    let mut bytes = vec![0u8; n * length * 8];
    flat.copy_data_u8(&mut bytes, n * length);
    let mut first: HashMap<&[u8], usize> = HashMap::new();
    let repeated =
        bytes.chunks_exact(length * 8).enumerate().filter(|(at, image)| *first.entry(image).or_insert(*at) != *at);
    let repeated = repeated.count();
    if repeated > 0 {
        report.doubt(format!("{name}: {repeated} of {n} images repeat another one exactly"));
    }
    if pixels.size()[1] == 3 && low.is_finite() && high.is_finite() {
        interleaved(report, name, &flat);
        let scale = if is_bytes { 255.0 } else { 1.0 };
        if low >= 0.0 && high <= scale {
            channel_order(report, name, &(pixels / scale), reference);
        }
    }
}

/// Colours side by side that were taken for planes.
fn interleaved(report: &mut Report, name: &str, flat: &Tensor) {
    let length = flat.size()[1];
    if length < 12 {
        return;
    }
    let difference = |lag: i64| {
        let (left, right) = (flat.narrow(1, 0, length - lag), flat.narrow(1, lag, length - lag));
        (right - left).abs().mean(Kind::Double).double_value(&[])
    };
    let (next, third) = (difference(1), difference(3));
    if third < INTERLEAVED_RATIO * next {
        report.doubt(format!(
            "{name}: was [N, H, W, C] stored as [N, C, H, W]? Neighbouring values differ by {next:.4}, but values three apart \
             only by {third:.4}"
        ));
    }
}

/// Compares red and blue with the dataset's means. The evidence is one number, so there is a verdict only if it is far enough from
/// 0 for this many images.
fn channel_order(report: &mut Report, name: &str, pixels: &Tensor, reference: Option<&Reference>) {
    let Some(spec) = reference.map(|reference| &reference.spec).filter(|spec| spec.channels == 3) else { return };
    let expected = spec.mean[0] - spec.mean[2];
    let means = pixels.mean_dim([2i64, 3].as_slice(), false, Kind::Double);
    let differences = means.select(1, 0) - means.select(1, 2);
    let n = differences.size()[0];
    let found = differences.mean(Kind::Double).double_value(&[]);
    let error = if n > 1 { differences.std(true).double_value(&[]) / (n as f64).sqrt() } else { f64::INFINITY };
    let evidence =
        format!("red minus blue is {found:.3} with a standard error of {error:.3}; {} has {expected:.3}", spec.name);
    let told = expected.abs() >= LEAST_COLOUR
        && found.abs() > ERRORS_TO_TELL * error
        && 2.0 * expected.abs() > ERRORS_TO_TELL * error;
    if !told {
        report.line("channel order", format!("cannot tell: {evidence}"));
    } else if found * expected > 0.0 {
        report.line("channel order", format!("as in {}: {evidence}", spec.name));
    } else {
        report.doubt(format!(
            "{name}: are the channels blue, green, red? {evidence}. Distilled images may differ from their dataset, so look at \
             --grid; if the colours are wrong, import with --bgr"
        ));
    }
}

/// The labels that belong to the images called `images`: of as many whole numbers as there are images.
pub(super) fn labels_of(file: &TensorFile, images: &str) -> Option<(String, Tensor)> {
    let n = file.tensors[images].size()[0];
    let sibling = images.strip_suffix("[0]").map(|entry| format!("{entry}[1]"));
    let fits = |tensor: &Tensor| {
        let size = tensor.size();
        !tensor.is_floating_point() && (size[..] == [n] || size[..] == [n, 1])
    };
    let usual = ["labels".to_owned()];
    let known = sibling.into_iter().chain(usual).find(|name| file.tensors.get(name).is_some_and(fits));
    let name = known.or_else(|| file.tensors.iter().find(|(_, tensor)| fits(tensor)).map(|(name, _)| name.clone()))?;
    let labels = file.tensors[&name].view([n]).to_kind(Kind::Int64);
    Some((name, labels))
}

/// Range, balance and order.
pub(super) fn labels(report: &mut Report, name: &str, labels: &Tensor, reference: Option<&Reference>) {
    let labels = Vec::<i64>::try_from(labels).expect("labels are i64 [N]");
    let (Some(&low), Some(&high)) = (labels.iter().min(), labels.iter().max()) else { return };
    if let Some(Reference { spec, .. }) = reference {
        let k = spec.classes.len() as i64;
        if low == 1 && high == k {
            report.doubt(format!("{name}: the labels go from 1 to {k}, but classes go from 0 to {}", k - 1));
        } else if low < 0 || high >= k {
            report.doubt(format!(
                "{name}: the labels go from {low} to {high}, but {} has the classes 0 to {}",
                spec.name,
                k - 1
            ));
        }
    } else if low < 0 {
        report.doubt(format!("{name}: {low} is not a class; classes start at 0"));
    }
    let mut counts: HashMap<i64, usize> = HashMap::new();
    labels.iter().for_each(|label| *counts.entry(*label).or_default() += 1);
    let sizes: Vec<usize> = counts.values().copied().collect();
    report.line(name, format!("{} classes, {}", sizes.len(), range_of_counts(&sizes)));
    let grouped = labels.windows(2).filter(|pair| pair[0] != pair[1]).count() < counts.len();
    let ascending = labels.is_sorted();
    report.line(
        name,
        match (grouped, ascending) {
            (_, true) => "grouped by class, in class order",
            (true, false) => "grouped by class, but not in class order, so do not use --grouped",
            (false, false) => "not grouped by class, so do not use --grouped",
        },
    );
}

/// Where images are from, for [`labels_fit`].
#[derive(Clone, Copy)]
pub(super) struct Drawn {
    /// 2 where they were tiles of 2 x 2 mosaics: real images of that resolution are then the measure.
    pub(super) formation: i64,
    /// Whether c2r distilled them. Distilled images move away from real ones, so fewer of their labels agree. c2r does not
    /// mix up labels, so its sets are doubted only if the agreement is that of chance.
    pub(super) by_c2r: bool,
}

/// Whether labels say what the images show, judged by the nearest mean image of the dataset's classes. That is a poor
/// classifier, but how poor is measured on the dataset's test images.
pub(super) fn labels_fit(
    report: &mut Report,
    images: &Tensor,
    labels: &Tensor,
    drawn: Drawn,
    reference: Option<&Reference>,
) {
    let Some(Reference { spec, data: Some(data) }) = reference else { return };
    if images.size()[1..] != spec.shape() || images.isfinite().all().int64_value(&[]) == 0 {
        return;
    }
    let _no_grad = tch::no_grad_guard();
    let images =
        if images.kind() == Kind::Uint8 { images.to_kind(Kind::Float) / 255.0 } else { images.to_kind(Kind::Float) };
    if images.min().double_value(&[]) < 0.0 || images.max().double_value(&[]) > 1.0 {
        return;
    }
    let means: Vec<Tensor> = (0..spec.classes.len())
        .filter(|&class| !data.train.class_positions(class).is_empty())
        .map(|class| {
            let positions: Vec<usize> = data.train.class_positions(class).iter().copied().take(500).collect();
            data.train.batch(&positions, Device::Cpu).0.mean_dim([0i64].as_slice(), false, Kind::Float).flatten(0, -1)
        })
        .collect();
    if means.len() != spec.classes.len() {
        return;
    }
    let means = Tensor::stack(&means, 0);
    let agreeing = |images: &Tensor, labels: &Tensor| {
        let nearest = Tensor::cdist(&images.flatten(1, -1), &means, 2.0, None).argmin(1, false);
        nearest.eq_tensor(labels).sum(Kind::Int64).int64_value(&[]) as usize
    };
    let step = data.test.len().div_ceil(BASELINE_IMAGES);
    let (test, test_labels) = data.test.batch(&(0..data.test.len()).step_by(step).collect::<Vec<_>>(), Device::Cpu);
    let test = if drawn.formation > 1 { coarse(&test, drawn.formation) } else { test };
    let usual = agreeing(&test, &test_labels) as f64 / test_labels.size()[0] as f64;
    let (k, n) = (agreeing(&images, labels), images.size()[0] as usize);
    let coarse = if drawn.formation > 1 { " at that resolution" } else { "" };
    let evidence = format!(
        "the nearest class mean of {} agrees with {k} of {n} labels (on its test images{coarse}, with {:.0} %)",
        spec.name,
        100.0 * usual
    );
    // The probability that at most this many labels agree, where each does so as often as among the test images.
    let probability = Binomial::new(usual, n as u64).map_or(1.0, |agreeing| agreeing.cdf(k as u64));
    // The probability that at least this many do by chance.
    let by_chance = Binomial::new(1.0 / spec.classes.len() as f64, n as u64);
    let by_chance = by_chance.map_or(1.0, |agreeing| if k == 0 { 1.0 } else { agreeing.sf(k as u64 - 1) });
    if probability < UNLIKELY && !(drawn.by_c2r && by_chance < UNLIKELY) {
        report.doubt(format!("labels do not fit the images (shuffled, or another class order?): {evidence}"));
    } else {
        report.line("labels fit", evidence);
    }
}

/// Images as they are after they were tiles of mosaics.
fn coarse(images: &Tensor, formation: i64) -> Tensor {
    let (height, width) = (images.size()[2], images.size()[3]);
    let tiles = images.avg_pool2d([formation, formation], [formation, formation], [0, 0], false, true, None);
    tiles.upsample_bilinear2d([height, width], false, None, None)
}

/// Folder names that sort otherwise than they count or than a known dataset orders its classes.
pub(super) fn class_order(report: &mut Report, classes: &[String]) {
    let numbers: Option<Vec<u64>> = classes.iter().map(|name| name.parse().ok()).collect();
    if numbers.is_some_and(|numbers| !numbers.is_sorted()) {
        let start: Vec<&str> = classes.iter().take(4).map(String::as_str).collect();
        report.doubt(format!(
            "class order: the folders have numbers but are sorted as text ({}, ...); if the number is the class, pad it with \
             zeros",
            start.join(", ")
        ));
        return;
    }
    let mut sorted: Vec<&String> = classes.iter().collect();
    sorted.sort_unstable();
    for spec in c2r_data::registry() {
        for known in [&spec.wnids, &spec.classes] {
            let mut own: Vec<&String> = known.iter().collect();
            own.sort_unstable();
            if own == sorted && known[..] != *classes {
                report.doubt(format!(
                    "class order: these are the classes of {} in another order; class 0 is `{}` here, but `{}` there",
                    spec.name, classes[0], known[0]
                ));
                return;
            }
        }
    }
}

/// Images as a picture shows them, and one row per label; whatever is not in [0, 1] is stretched into it.
pub(super) fn drawable(images: &Tensor, labels: Option<&Tensor>) -> (Tensor, Vec<Vec<usize>>) {
    let _no_grad = tch::no_grad_guard();
    let images = if is_nhwc(images) { images.permute([0, 3, 1, 2]) } else { images.shallow_clone() };
    let mut pixels =
        if images.kind() == Kind::Uint8 { images.to_kind(Kind::Float) / 255.0 } else { images.to_kind(Kind::Float) };
    pixels = pixels.nan_to_num(0.0, 1.0, 0.0);
    let (low, high) = (pixels.min().double_value(&[]), pixels.max().double_value(&[]));
    if low < 0.0 || high > 1.0 {
        pixels = (pixels - low) / (high - low).max(f64::MIN_POSITIVE);
    }
    let n = pixels.size()[0] as usize;
    let labels = labels.map(|labels| Vec::<i64>::try_from(labels).expect("labels are i64 [N]"));
    let rows = match labels {
        Some(labels) => {
            let mut rows: std::collections::BTreeMap<i64, Vec<usize>> = std::collections::BTreeMap::new();
            for (position, label) in labels.into_iter().enumerate() {
                let row = rows.entry(label).or_default();
                if row.len() < GRID_COLUMNS {
                    row.push(position);
                }
            }
            rows.into_values().collect()
        }
        None => (0..n.min(GRID_COLUMNS * GRID_COLUMNS))
            .collect::<Vec<_>>()
            .chunks(GRID_COLUMNS)
            .map(<[usize]>::to_vec)
            .collect(),
    };
    (pixels, rows)
}
