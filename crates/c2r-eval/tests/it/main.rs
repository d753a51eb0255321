//! One binary, because each links libtorch.

mod report;
mod table;
