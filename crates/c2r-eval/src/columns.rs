//! The columns of a table: names in files, headings, units.

/// Column: accuracy with no attack.
pub const CLEAN: &str = "clean";
/// Column: mean robust accuracy over the section's attacks.
pub const MEAN_ROBUST: &str = "mean-robust";
/// Column: the smallest robust accuracy over the section's attacks.
pub const MINIMUM: &str = "minimum";
/// Column: accuracy where the best attack is picked for each image.
pub const WORST_CASE: &str = "worst-case";
/// Column: drop rate under [`DROP_RATE_ATTACK`]; `drop-rate-NAME` under the other attacks.
pub const DROP_RATE: &str = "drop-rate";
/// The attack of the column [`DROP_RATE`].
pub const DROP_RATE_ATTACK: &str = "pgd";
/// Columns `margin-q05-NAME` to `margin-q95-NAME`: quantiles over the test images of the smallest margin that an attack
/// found ([`crate::AttackScore::margins`]), in logits.
pub const MARGIN: &str = "margin";
/// Columns of the ratios over all attacks, see [`crate::metrics`].
pub(crate) const RATIOS: [&str; 5] = ["rr", "i-rr", "ae", "crei", "i-crei"];
/// Columns that measure the machine as much as the network.
const HARDWARE_COLUMNS: [&str; 3] = ["ae", "crei", "i-crei"];
/// Sanity floors that an attack must beat; no mean or minimum includes them.
const SANITY: [&str; 2] = ["clean", "noise"];

/// Whether an attack is a floor that every real attack must beat.
pub(crate) fn is_sanity(attack: &str) -> bool {
    SANITY.contains(&attack)
}

/// Whether a column is in logits instead of percent.
pub(crate) fn is_margin(column: &str) -> bool {
    column.strip_prefix(MARGIN).is_some_and(|rest| rest.starts_with("-q"))
}

/// Whether methods can be compared in a column: neither its unit nor its hardware differs from network to network.
pub(crate) fn is_comparable(column: &str) -> bool {
    !HARDWARE_COLUMNS.contains(&column) && !is_margin(column)
}

/// What a column depends on besides the network; empty for nothing.
pub(crate) fn caveat(column: &str) -> &'static str {
    if HARDWARE_COLUMNS.contains(&column) {
        "made of wall-clock times: depends on the hardware"
    } else if is_margin(column) {
        "in logits, so networks of different scale do not compare; from above, as good as the attack"
    } else {
        ""
    }
}

/// The column of the quantile `part`, in `[0, 1]`, of the margins under an attack.
pub(crate) fn margin_column(part: f64, attack: &str) -> String {
    format!("{MARGIN}-q{:02}-{attack}", (100.0 * part).round())
}

/// The column of the drop rate under an attack.
pub(crate) fn drop_rate_column(attack: &str) -> String {
    if attack == DROP_RATE_ATTACK { DROP_RATE.to_owned() } else { format!("{DROP_RATE}-{attack}") }
}

/// A column's heading.
pub(crate) fn column_label(column: &str) -> String {
    match column {
        "jitter" => "Jitter".into(),
        "square" => "Square".into(),
        "deepfool" => "DeepFool".into(),
        "cw-linf" => "CW".into(),
        "autoattack-standard" => "AutoAttack".into(),
        MEAN_ROBUST => "mean robust".into(),
        DROP_RATE => format!("DR ({})", column_label(DROP_RATE_ATTACK)),
        CLEAN | MINIMUM | WORST_CASE | "noise" => column.into(),
        _ => match column.strip_prefix("drop-rate-") {
            Some(attack) => format!("DR ({})", column_label(attack)),
            None if is_margin(column) => {
                let (quantile, attack) = column[MARGIN.len() + 2..].split_once('-').unwrap_or((column, CLEAN));
                format!("margin, {} % quantile ({})", quantile.trim_start_matches('0'), column_label(attack))
            }
            None => column.to_uppercase(),
        },
    }
}

/// Headings of attacks, separated by commas.
pub(crate) fn names<'a>(attacks: impl IntoIterator<Item = &'a str>) -> String {
    attacks.into_iter().map(column_label).collect::<Vec<_>>().join(", ")
}

/// Images per class in a table.
pub(crate) fn size(images_per_class: Option<usize>) -> String {
    images_per_class.map_or_else(|| "all".to_owned(), |count| count.to_string())
}

/// A number with `decimals` digits after the point; no negative zero.
pub(crate) fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    if text.starts_with('-') && text.bytes().all(|byte| b"-0.".contains(&byte)) { text[1..].to_owned() } else { text }
}

/// A number of a column: percent with one decimal, logits with two.
pub(crate) fn value(column: &str, number: f64) -> String {
    fixed(number, if is_margin(column) { 2 } else { 1 })
}
