//! The core of C2R: robust margins, the attack-aware curriculum, LS-PGD and the contrastive robustness loss.
