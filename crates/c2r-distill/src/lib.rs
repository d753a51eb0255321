//! Robust dataset distillation: methods, network pool, outer loop and resumable state.
