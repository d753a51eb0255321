//! Evaluation protocols, robustness metrics, statistics and result tables.
