//! Training loops, schedules and adversarial training for c2r.
