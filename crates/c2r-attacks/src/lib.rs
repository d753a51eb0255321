//! Adversarial attacks and robustness evaluation on libtorch, for any classifier that maps pixels to logits.
