//! The columns of a table: names in files, headings, units.

use crate::stats::SIGNIFICANT;

/// Column: accuracy with no attack.
pub const CLEAN: &str = "clean";
/// Column: mean robust accuracy over the paper's [`PAPER_ATTACKS`] attacks.
pub const MEAN_ROBUST: &str = "mean-robust";
/// Column: mean robust accuracy over these and [`AUTOATTACK`].
pub const MEAN_ROBUST_AUTOATTACK: &str = "mean-robust-autoattack";
/// The attacks of the paper's main comparison, Li et al. 2026, arXiv:2605.20606v2; its appendix adds AutoAttack.
pub const PAPER_ATTACKS: [&str; 5] = ["fgsm", "pgd", "cw-linf", "vmi-fgsm", "jitter"];
/// The suite that is the paper's sixth attack.
pub const AUTOATTACK: &str = "autoattack-standard";
/// What [`AUTOATTACK`] is made of: next to it these do not count again.
const PARTS_OF_AUTOATTACK: [&str; 4] = ["apgd-ce", "apgd-t", "fab-t", "square"];
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

/// Whether a column is a share of the clean accuracy: a drop rate, or a ratio that is made of them.
pub(crate) fn is_share_of_clean(column: &str) -> bool {
    column.starts_with(DROP_RATE) || RATIOS.contains(&column)
}

/// Whether an attack is a floor that every real attack must beat.
pub(crate) fn is_sanity(attack: &str) -> bool {
    SANITY.contains(&attack)
}

/// The attacks that minimum, worst case and ratios are over: all but the floors, and but the parts of an AutoAttack that is
/// among them.
pub(crate) fn counted(attacks: &[String]) -> Vec<&str> {
    let whole = attacks.iter().any(|attack| attack == AUTOATTACK);
    let counts = |attack: &&str| !(is_sanity(attack) || whole && PARTS_OF_AUTOATTACK.contains(attack));
    attacks.iter().map(String::as_str).filter(counts).collect()
}

/// The columns of mean robust accuracies that a section has, with the attacks that each is over. Where none of the paper's five
/// is there, the mean is over the attacks that count.
pub(crate) fn averages(attacks: &[String]) -> Vec<(&'static str, Vec<&str>)> {
    let five: Vec<&str> = attacks.iter().map(String::as_str).filter(|attack| PAPER_ATTACKS.contains(attack)).collect();
    if five.is_empty() {
        let counted = counted(attacks);
        return if counted.is_empty() { vec![] } else { vec![(MEAN_ROBUST, counted)] };
    }
    let mut averages = vec![(MEAN_ROBUST, five.clone())];
    if attacks.iter().any(|attack| attack == AUTOATTACK) {
        averages.push((MEAN_ROBUST_AUTOATTACK, [five, vec![AUTOATTACK]].concat()));
    }
    averages
}

/// The attacks from whose outcomes a column that is not an attack's own is computed, in a section with these attacks. Margins
/// are not among them: they are shown in a part of their own.
pub(crate) fn parts<'a>(attacks: &'a [String], column: &str) -> Vec<&'a str> {
    if column == MINIMUM || column == WORST_CASE || RATIOS.contains(&column) {
        return counted(attacks);
    }
    let drop_rate = |attack: &&String| drop_rate_column(attack) == column;
    if let Some(attack) = attacks.iter().find(drop_rate) {
        return vec![attack];
    }
    averages(attacks).into_iter().find(|(name, _)| *name == column).map(|(_, over)| over).unwrap_or_default()
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
        "contains wall-clock times, so it depends on the hardware"
    } else if is_margin(column) {
        "in logits, so not comparable between networks of different logit scales; an upper bound, as good as the attack"
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

/// The heading of a column of a section with these attacks: a mean names those that it is over.
pub(crate) fn column_heading(attacks: &[String], column: &str) -> String {
    let averages = averages(attacks);
    match averages.iter().find(|(name, _)| *name == column) {
        // Next to the column of the five, which names them.
        Some((MEAN_ROBUST_AUTOATTACK, _)) => format!("mean robust (these and {})", column_label(AUTOATTACK)),
        Some((_, over)) => format!("mean robust ({})", names(over.iter().copied())),
        None => column_label(column),
    }
}

/// A column's name.
pub(crate) fn column_label(column: &str) -> String {
    match column {
        "jitter" => "Jitter".into(),
        "square" => "Square".into(),
        "deepfool" => "DeepFool".into(),
        "cw-linf" => "CW".into(),
        AUTOATTACK => "AutoAttack".into(),
        MEAN_ROBUST => "mean robust".into(),
        MEAN_ROBUST_AUTOATTACK => "mean robust with AutoAttack".into(),
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

/// `1,438`.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or("")).collect();
    groups.join(",")
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

/// A p-value as it follows a `p`: `= 0.117`, `< 0.001`. Rounding must not decide on which side of the limit it is.
pub(crate) fn p_value(p: f64) -> String {
    let digits = if fixed(p, 3) == fixed(SIGNIFICANT, 3) { 5 } else { 3 };
    if p < 0.001 { "< 0.001".to_owned() } else { format!("= {}", fixed(p, digits)) }
}

/// A number of a column: percent with one decimal, logits with two.
pub(crate) fn value(column: &str, number: f64) -> String {
    fixed(number, if is_margin(column) { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_does_not_move_a_p_value_over_the_limit() {
        let texts = [0.117, 0.0496, 0.0504, 0.001, 0.0004, 1.0].map(p_value);
        assert_eq!(texts, ["= 0.117", "= 0.04960", "= 0.05040", "= 0.001", "< 0.001", "= 1.000"]);
    }

    fn of(attacks: &[&str]) -> Vec<(&'static str, Vec<String>)> {
        let attacks: Vec<String> = attacks.iter().map(ToString::to_string).collect();
        let averages = averages(&attacks).into_iter();
        averages.map(|(column, over)| (column, over.into_iter().map(str::to_owned).collect())).collect()
    }

    fn names_of(attacks: &[&str]) -> Vec<String> {
        let attacks: Vec<String> = attacks.iter().map(ToString::to_string).collect();
        averages(&attacks).iter().map(|(column, _)| column_heading(&attacks, column)).collect()
    }

    #[test]
    fn means_are_over_the_papers_attacks_and_name_them() {
        let eight = [&PAPER_ATTACKS[..], &["apgd-ce", "apgd-t", AUTOATTACK]].concat();
        let six = [&PAPER_ATTACKS[..], &[AUTOATTACK]].concat();
        let expected = |over: &[&str]| over.iter().map(ToString::to_string).collect::<Vec<_>>();
        let both = [(MEAN_ROBUST, expected(&PAPER_ATTACKS)), (MEAN_ROBUST_AUTOATTACK, expected(&six))];
        assert_eq!(of(&eight), both, "parts of AutoAttack do not count beside it");
        assert_eq!(of(&six), both);
        assert_eq!(
            names_of(&eight),
            ["mean robust (FGSM, PGD, CW, VMI-FGSM, Jitter)", "mean robust (these and AutoAttack)"]
        );
        // Some are missing: the others are named. What the paper does not have, and floors, do not count.
        assert_eq!(of(&["fgsm", "pgd", "apgd-ce", "noise"]), [(MEAN_ROBUST, expected(&["fgsm", "pgd"]))]);
        assert_eq!(names_of(&["fgsm", "pgd", "apgd-ce"]), ["mean robust (FGSM, PGD)"]);
        // None of them: over those that there are.
        assert_eq!(of(&["apgd-ce", "cw-l2", "noise"]), [(MEAN_ROBUST, expected(&["apgd-ce", "cw-l2"]))]);
        assert_eq!(of(&[AUTOATTACK, "apgd-t"]), [(MEAN_ROBUST, expected(&[AUTOATTACK]))]);
        assert_eq!(of(&["noise"]), []);
    }
}
