//! c2r's own CUDA kernels that cannot be used: libtorch's operators run in their place, with the same results up to rounding, but slower.

use c2r_kernels::cuda::unusable;
use c2r_run::terminal::Ui;
use serde_json::Value;

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
            let note = format!("a CUDA kernel of c2r could not be used, which is slower: {kernel}");
            if !self.0.contains(&note) {
                ui.note(format!("note: {note}"));
                self.0.push(note);
            }
        }
    }

    /// Puts all of them into the summary of a run, as `notes`, if there are any.
    pub(crate) fn record(&self, summary: &mut Value) {
        if !self.0.is_empty() {
            summary["notes"] = self.0.clone().into();
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
        notes.record(&mut summary);
        let all = summary["notes"].as_array().unwrap();
        assert!(all.len() == 2 && all.iter().all(|note| note.as_str().unwrap().contains("it has no nvrtc")), "{all:?}");
        assert_eq!(notes.into_notes().len(), 2);
    }
}
