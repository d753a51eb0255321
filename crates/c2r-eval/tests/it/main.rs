//! One binary, because each links libtorch.

mod report;
mod rows;
mod table;
