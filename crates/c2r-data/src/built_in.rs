use c2r_experiment::DatasetEntry;

use crate::{digits, registry};

/// Path from the top of the repository and text of each file that is part of this crate: the registry, and the digits.
pub const BUILT_IN: [(&str, &str); 2] =
    [(DatasetEntry::REGISTRY, registry::TEXT), ("data/digits/optdigits.csv", digits::CSV)];
