//! The labels of a foreign file: hard, soft, or both.

use c2r_base::artifact::TensorFile;
use tch::{Device, Kind, Tensor};

use super::options::{ImportOptions, contents, named, wrong};
use crate::{DataError, DatasetSpec};

/// How far a row of probabilities may be from a sum of 1.
const ROW_SUM_TOLERANCE: f64 = 1e-3;
/// If every row sums to 1 within this, the rows are probabilities that were rounded or scaled, and not logits.
const NEARLY_ONE: f64 = 0.1;
/// What labels are usually called.
const USUAL: [&str; 6] = ["labels", "label", "y", "targets", "soft_labels", "hard_labels"];
/// Positions that an error lists.
const LISTED: usize = 3;

/// Labels of images, and where they come from.
pub(super) struct Labels {
    /// i64 `[N]`.
    pub(super) hard: Tensor,
    /// f32 `[N, K]`, rows of probabilities.
    pub(super) soft: Option<Tensor>,
    /// The tensors they were in.
    pub(super) names: Vec<String>,
    /// The class of each image is the one with the largest probability.
    pub(super) is_largest: bool,
}

/// What is asked for, and of which images.
pub(super) struct Wanted<'a> {
    /// Name of the tensor with the images.
    pub(super) images: &'a str,
    /// Number of images.
    pub(super) n: i64,
    pub(super) spec: &'a DatasetSpec,
    pub(super) options: &'a ImportOptions,
}

impl Wanted<'_> {
    fn n_classes(&self) -> i64 {
        self.spec.classes.len() as i64
    }

    fn by_position(&self) -> Tensor {
        let k = self.n_classes();
        Tensor::arange(k, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(self.n / k, 0, None)
    }

    fn is_flat(&self, tensor: &Tensor) -> bool {
        tensor.size()[..] == [self.n] || tensor.size()[..] == [self.n, 1]
    }

    fn fits(&self, tensor: &Tensor) -> bool {
        self.is_flat(tensor) || tensor.size()[..] == [self.n, self.n_classes()]
    }
}

/// The labels in `labels`, which is another file, or else in `file`.
pub(super) fn find_labels(
    file: &TensorFile,
    labels: Option<&TensorFile>,
    wanted: &Wanted<'_>,
    notes: &mut Vec<String>,
) -> Result<Labels, DataError> {
    let Wanted { n, spec, options, .. } = *wanted;
    let k = wanted.n_classes();
    if n % k != 0 {
        return wrong(format!("{n} images are not equally many for each of the {k} classes of {}", spec.name));
    }
    let source = labels.unwrap_or(file);
    let is_named = labels.is_some() || options.labels.is_some();
    let names = match &options.labels {
        Some(name) => vec![name.clone()],
        None => {
            let mut names = guess(source, labels.is_some(), wanted)?;
            // Where the class follows from the position, a tensor that cannot be labels is not taken for them.
            names.retain(|name| is_named || !options.grouped || may_be_labels(&source.tensors[name]));
            names
        }
    };
    if names.is_empty() {
        if options.grouped && !is_named {
            if options.logits {
                return wrong("there are no labels: leave option `logits` out".to_owned());
            }
            notes.push(format!("labels by position, {} per class", n / k));
            return Ok(Labels { hard: wanted.by_position(), soft: None, names, is_largest: false });
        }
        return wrong(format!(
            "which tensor has the labels? Use option `labels NAME`, option `labels-from FILE`, or option `grouped` where the images are grouped by class; there are {}",
            contents(source)
        ));
    }
    let (mut hard, mut soft) = (None, None);
    for name in &names {
        let tensor = named(source, name)?;
        notes.push(format!("labels from `{name}`, {:?} {:?}", tensor.kind(), tensor.size()));
        if !wanted.fits(tensor) {
            return wrong(format!("labels must be [{n}] or [{n}, {k}], `{name}` is {:?}", tensor.size()));
        }
        if wanted.is_flat(tensor) {
            hard = Some(hard_labels(name, tensor, wanted, names.len() > 1)?);
        } else {
            soft = Some(soft_labels(name, tensor, wanted, notes)?);
        }
    }
    join(hard, soft, names, wanted, notes)
}

/// Hard and soft labels of the same images.
fn join(
    hard: Option<Tensor>,
    soft: Option<Tensor>,
    names: Vec<String>,
    wanted: &Wanted<'_>,
    notes: &mut Vec<String>,
) -> Result<Labels, DataError> {
    let grouped = wanted.options.grouped;
    let Some(soft) = soft else {
        return Ok(Labels { hard: hard.unwrap_or_else(|| wanted.by_position()), soft: None, names, is_largest: false });
    };
    let one_hot = soft.eq(0.0).logical_or(&soft.eq(1.0)).all().int64_value(&[]) == 1;
    if one_hot && grouped && !wanted.options.logits {
        return wrong(has_labels(&names[0]));
    }
    let is_largest = hard.is_none() && !grouped;
    let hard = match hard {
        Some(hard) => {
            agree(&hard, &soft, &names)?;
            notes.push(format!("the class of each image from `{}`", names[0]));
            hard
        }
        None if grouped => {
            let hard = wanted.by_position();
            let n = hard.size()[0];
            let own = soft.gather(1, &hard.unsqueeze(1), false).squeeze_dim(1);
            let fitting = own.ge_tensor(&soft.amax([1i64].as_slice(), false)).sum(Kind::Int64).int64_value(&[]);
            if 2 * fitting < n {
                return wrong(format!(
                    "by option `grouped`, the images are sorted by class, but `{}` has its largest value at that class for only {fitting} \
                     of {n} images; without the option, this largest value is the class",
                    names[0]
                ));
            }
            hard
        }
        None => largest(&soft, &names[0])?,
    };
    if one_hot && soft.argmax(1, false).equal(&hard) {
        notes.push("they are one-hot: hard labels".to_owned());
        return Ok(Labels { hard, soft: None, names, is_largest });
    }
    Ok(Labels { hard, soft: Some(soft.to_kind(Kind::Float)), names, is_largest })
}

/// The class of the largest probability in each row.
fn largest(soft: &Tensor, name: &str) -> Result<Tensor, DataError> {
    let most = soft.amax([1i64].as_slice(), true);
    let several = soft.eq_tensor(&most).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).gt(1);
    let rows = positions(&several);
    if !rows.is_empty() {
        return wrong(format!(
            "`{name}` does not determine the class of {} images, because several classes share the largest probability (images \
             {}): store the classes as `labels` next to it, or use option `grouped` if the images are grouped by class",
            rows.len(),
            listed(&rows)
        ));
    }
    Ok(soft.argmax(1, false))
}

/// Whether the class of each image has the largest probability of its row.
fn agree(hard: &Tensor, soft: &Tensor, names: &[String]) -> Result<(), DataError> {
    let k = soft.size()[1];
    if hard.min().int64_value(&[]) < 0 || hard.max().int64_value(&[]) >= k {
        // What the set says about labels outside the classes.
        return Ok(());
    }
    let own = soft.gather(1, &hard.unsqueeze(1), false).squeeze_dim(1);
    let rows = positions(&own.lt_tensor(&soft.amax([1i64].as_slice(), false)));
    if rows.is_empty() {
        return Ok(());
    }
    let (n, names) = (hard.size()[0], names.join("` and `"));
    wrong(format!(
        "`{names}` disagree about the class of {} of {n} images (images {}): choose the right one with option `labels NAME`",
        rows.len(),
        listed(&rows)
    ))
}

fn positions(mask: &Tensor) -> Vec<i64> {
    Vec::try_from(mask.nonzero().flatten(0, -1)).expect("positions are i64")
}

fn listed(rows: &[i64]) -> String {
    let more = if rows.len() > LISTED { ", ..." } else { "" };
    let rows: Vec<String> = rows.iter().take(LISTED).map(ToString::to_string).collect();
    format!("{}{more}", rows.join(", "))
}

/// i64 `[N]`.
fn hard_labels(name: &str, tensor: &Tensor, wanted: &Wanted<'_>, has_soft: bool) -> Result<Tensor, DataError> {
    let Wanted { n, options, .. } = *wanted;
    let k = wanted.n_classes();
    // Whole numbers up to this are exact.
    let exact = match tensor.kind() {
        Kind::BFloat16 => 256,
        Kind::Half => 2048,
        _ => i64::MAX,
    };
    if k > exact {
        return wrong(format!(
            "`{name}` is {:?}, which cannot represent classes above {exact}: save them as i64",
            tensor.kind()
        ));
    }
    let values = tensor.view([n]).to_kind(Kind::Double);
    if !values.equal(&values.round()) {
        return wrong(format!("`{name}` has numbers that are not classes"));
    }
    if options.logits && !has_soft {
        return wrong(format!("`{name}` has classes, not logits, which are [{n}, {k}]: leave option `logits` out"));
    }
    if options.grouped {
        return wrong(has_labels(name));
    }
    if values.min().double_value(&[]) >= 1.0 && values.max().double_value(&[]) == k as f64 {
        return wrong(format!(
            "`{name}` has labels up to {k}, outside 0..={}, and no label 0, so they seem to count from 1; subtract 1 from \
             each and save the file again",
            k - 1
        ));
    }
    Ok(values.to_kind(Kind::Int64))
}

/// Why option `grouped` does not go with hard labels.
fn has_labels(name: &str) -> String {
    format!(
        "`{name}` says the class of each image, and option `grouped` takes it from the position: leave option `grouped` out"
    )
}

/// f64 `[N, K]`, rows of probabilities.
fn soft_labels(name: &str, tensor: &Tensor, wanted: &Wanted<'_>, notes: &mut Vec<String>) -> Result<Tensor, DataError> {
    let rows = tensor.to_kind(Kind::Double);
    if rows.isfinite().all().int64_value(&[]) == 0 {
        return wrong(format!("`{name}` has values that are not finite"));
    }
    // Each value is rounded by at most its share of this, and so is their sum.
    let tolerance = match tensor.kind() {
        Kind::BFloat16 => f64::powi(2.0, -7),
        _ => ROW_SUM_TOLERANCE,
    };
    let (low, high, furthest) = (rows.min().double_value(&[]), rows.max().double_value(&[]), furthest_sum(&rows));
    if wanted.options.logits {
        if low >= 0.0 && furthest <= NEARLY_ONE {
            return wrong(format!(
                "the rows of `{name}` are probabilities or one-hot already: leave option `logits` out"
            ));
        }
        notes.push("softmax of the logits".to_owned());
        return Ok(rows.softmax(1, Kind::Double));
    }
    if low >= 0.0 && furthest <= tolerance {
        if furthest <= ROW_SUM_TOLERANCE {
            return Ok(rows);
        }
        notes.push(format!(
            "rows of `{name}` miss a sum of 1 by up to {furthest:.4}, the rounding of {:?}; each was divided by its sum",
            tensor.kind()
        ));
        return Ok(&rows / rows.sum_dim_intlist([1i64].as_slice(), true, Kind::Double));
    }
    let advice = if low < 0.0 && (high > 1.0 || high <= 0.0) {
        "logits? Use option `logits`"
    } else if low >= 0.0 {
        "divide each row by its sum and save the file again"
    } else {
        "c2r takes probabilities, or logits with option `logits`, which are seldom as small as these; targets of a regression are neither"
    };
    wrong(format!(
        "the rows of `{name}` are not probabilities: they range from {low:.3} to {high:.3} and miss a sum of 1 by up to {furthest:.3}; {advice}"
    ))
}

fn furthest_sum(rows: &Tensor) -> f64 {
    let sums = rows.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    (sums - 1.0).abs().max().double_value(&[])
}

/// Whether a tensor of a fitting shape holds classes, or rows.
fn may_be_labels(tensor: &Tensor) -> bool {
    tensor.size().get(1).is_some_and(|&k| k > 1) || tensor.equal(&tensor.round())
}

/// The tensors that can only be the labels: one, or the hard ones and the soft ones.
fn guess(file: &TensorFile, own_file: bool, wanted: &Wanted<'_>) -> Result<Vec<String>, DataError> {
    let sibling = wanted.images.strip_suffix("[0]").map(|entry| format!("{entry}[1]"));
    if let Some(sibling) = sibling.filter(|name| file.tensors.contains_key(name)) {
        return Ok(vec![sibling]);
    }
    let usual: Vec<&str> = USUAL.into_iter().filter(|&name| file.tensors.contains_key(name)).collect();
    let (hard, soft): (Vec<&str>, Vec<&str>) = usual
        .iter()
        .partition(|&&name| name != "soft_labels" && file.tensors[name].size().get(1).is_none_or(|&k| k == 1));
    for names in [&hard, &soft] {
        let differ = |pair: &[&str]| {
            let [a, b] = [pair[0], pair[1]].map(|name| file.tensors[name].flatten(0, -1).to_kind(Kind::Double));
            !a.equal(&b)
        };
        if names.windows(2).any(differ) {
            return wrong(format!(
                "`{}` differ, and each could hold the labels: choose one with option `labels NAME`",
                names.join("` and `")
            ));
        }
    }
    let found: Vec<String> = hard.first().into_iter().chain(soft.first()).map(|&name| name.to_owned()).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let candidates: Vec<&String> = file
        .tensors
        .iter()
        .filter(|(name, tensor)| (own_file || *name != wanted.images) && wanted.fits(tensor))
        .map(|(name, _)| name)
        .collect();
    Ok(match candidates[..] {
        [only] => vec![only.clone()],
        _ => Vec::new(),
    })
}
