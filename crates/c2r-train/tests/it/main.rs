//! Training against an independent implementation.

mod steps;
