//! One module per command.

pub(crate) mod attack;
pub(crate) mod built_in;
pub(crate) mod distill;
pub(crate) mod doctor;
pub(crate) mod estimate;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod report;
pub(crate) mod table;
pub(crate) mod train;
