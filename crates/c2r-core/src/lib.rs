//! The core of C²R: robust margins, the attack-aware curriculum, LS-PGD and the contrastive
//! robustness loss.
//!
//! **What it is:** the parts of "Mind Your Margin and Boundary: Are Your Distilled Datasets Truly
//! Robust?" (Li et al., ICML 2026, arXiv:2605.20606; "the paper" below) that are about neither
//! loops nor networks. [`margin`] defines what is hard, [`curriculum`] orders samples by it, [`ls_pgd`]
//! makes the adversarial companions, [`crl`] pulls a sample's embedding to its companions and away
//! from its nearest impostors, which [`queue`] remembers.
//!
//! **What it is not:** it holds no network, optimizer or training loop (`c2r-distill`), and it never
//! evaluates a network (`c2r-attacks`).
//!
//! **Where to start:** [`crl::CrlConfig::contrast`] and [`ls_pgd::LsPgd`].

pub mod crl;
pub mod curriculum;
pub mod ls_pgd;
pub mod margin;
pub mod queue;
