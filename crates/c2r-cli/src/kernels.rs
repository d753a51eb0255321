//! c2r's own CUDA kernels: which of them a run used, and notes on those that cannot be used.

use c2r_kernels::{cuda::unusable, cuda_state};
use c2r_run::terminal::Ui;
use serde_json::Value;

/// What it means that a kernel cannot be used.
pub(crate) const COST: &str = "which is slower; without the kernel for images, the first block convolves in TF32 instead of \
                               fp32, unless --precision fp32 is given";

/// The notes on them that this run has printed.
#[derive(Default)]
pub(crate) struct KernelNotes(Vec<String>);

impl KernelNotes {
    /// Prints a note on each kernel that is new since the last call. On a CPU there is none.
    pub(crate) fn update(&mut self, ui: &Ui) {
        self.add(unusable(), ui);
    }

    fn add(&mut self, unusable: Vec<String>, ui: &Ui) {
        for kernel in unusable {
            let note = format!("a CUDA kernel of c2r could not be used, {COST}: {kernel}");
            if !self.0.contains(&note) {
                ui.note(format!("note: {note}"));
                self.0.push(note);
            }
        }
    }

    /// Puts all of them into the summary of a run, as `notes`, and what became of each kernel, as `kernels`, if there are any.
    pub(crate) fn record(&self, summary: &mut Value) {
        self.record_with(cuda_state(), summary);
    }

    fn record_with(&self, kernels: Vec<String>, summary: &mut Value) {
        if !self.0.is_empty() {
            summary["notes"] = self.0.clone().into();
        }
        if !kernels.is_empty() {
            summary["kernels"] = kernels.into();
        }
    }

    /// All the notes.
    pub(crate) fn into_notes(self) -> Vec<String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_is_noted_once_and_recorded() {
        let mut notes = KernelNotes::default();
        let ui = Ui { quiet: true, ..Ui::default() };
        let mut summary = json!({ "seconds": 1 });
        notes.update(&ui);
        notes.record(&mut summary);
        assert_eq!(summary, json!({ "seconds": 1 }), "no GPU was asked");
        let of = |size: &str| format!("cuda:0, features of {size}: libtorch's operators, because it has no nvrtc");
        notes.add(vec![of("8x8")], &ui);
        notes.add(vec![of("16x16"), of("8x8")], &ui);
        let used = "cuda:0, color images of 32x32: fused kernels, compared with libtorch's operators";
        notes.record_with(vec![used.to_owned()], &mut summary);
        assert_eq!(summary["kernels"], json!([used]));
        let all = summary["notes"].as_array().unwrap();
        assert!(all.len() == 2 && all.iter().all(|note| note.as_str().unwrap().contains("it has no nvrtc")), "{all:?}");
        assert_eq!(notes.into_notes().len(), 2);
    }
}
