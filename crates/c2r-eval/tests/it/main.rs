//! One binary, because each links libtorch.

mod table;
