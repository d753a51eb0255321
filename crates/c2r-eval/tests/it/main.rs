//! One binary, because each links libtorch.

mod errors;
mod report;
mod rows;
mod table;
