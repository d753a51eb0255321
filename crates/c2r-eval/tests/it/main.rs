//! One binary, because each links libtorch.

mod baselines;
mod causes;
mod errors;
mod findings;
mod origins;
mod report;
mod rows;
mod table;
