//! The distillation methods by the names that configurations use, one line each.

use crate::{
    method::MethodEntry,
    methods::{c2r, coreset, dm, gradient_matching, recovery, trajectory_matching},
};

/// Every method of this crate. [`DistillConfig::resolve_with`](crate::DistillConfig::resolve_with) takes methods of other
/// crates beside them.
pub const METHODS: &[MethodEntry] = &[
    c2r::ENTRY,
    coreset::RANDOM_REAL,
    coreset::HERDING,
    coreset::K_CENTER,
    dm::ENTRY,
    gradient_matching::ENTRY,
    trajectory_matching::ENTRY,
    recovery::ENTRY,
];
