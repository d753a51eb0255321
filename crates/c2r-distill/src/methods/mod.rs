//! The methods: of each its configuration, checks, cost and code.

pub(crate) mod c2r;
pub(crate) mod coreset;
pub(crate) mod dm;
pub(crate) mod gradient_matching;
pub(crate) mod recovery;
pub(crate) mod trajectory_matching;
