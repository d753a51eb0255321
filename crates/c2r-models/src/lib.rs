//! Networks of the dataset distillation field, frozen classifiers, and strict checkpoints.
