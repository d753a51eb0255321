//! What methods are made of.

pub(crate) mod companions;
pub(crate) mod epoch;
pub(crate) mod images;
pub(crate) mod optimizer;
pub(crate) mod pool;
pub(crate) mod real_rows;
