//! Test support for the c2r workspace: toy models with closed-form margins, golden readers, tensor asserts.
