//! Conformance with reference implementations, and properties that hold for every attack.

mod deterministic;
mod digits;
mod foreign;
mod models;
mod own;
mod passes;
mod properties;
mod rules;
mod rules_gradient;
mod rules_search;
mod stochastic;
mod stopping;
mod support;
mod traces;
mod units;
