//! Datasets, samplers, augmentation and the SyntheticSet file format of c2r.
