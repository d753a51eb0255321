//! The attacks: options, checks, cost and code of one family in one file.

pub(crate) mod apgd;
pub(crate) mod at_hand;
pub(crate) mod cw_l2;
pub(crate) mod deepfool;
pub(crate) mod fab;
pub(crate) mod floors;
pub(crate) mod iterative;
pub(crate) mod square;
pub(crate) mod suite;
pub(crate) mod windows;

pub use apgd::{ApgdConfig, ApgdTConfig};
pub use cw_l2::CwL2Config;
pub use deepfool::DeepFoolConfig;
pub use fab::{FabConfig, FabTConfig};
pub use floors::{CleanConfig, NoiseConfig};
pub use iterative::{
    BimConfig, CwLinfConfig, EotPgdConfig, FgsmConfig, JitterConfig, MiFgsmConfig, NiFgsmConfig, PgdConfig,
    RFgsmConfig, TpgdConfig, VmiFgsmConfig,
};
pub use square::SquareConfig;
