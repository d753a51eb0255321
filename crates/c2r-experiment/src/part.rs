use serde::Deserialize;

/// A part of a grid: every command that fits each key that is given. A key that is not given restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Part {
    /// Datasets.
    pub datasets: Vec<String>,
    /// Images per class; the reference on all real images is in no part that names any.
    pub ipcs: Vec<usize>,
    /// Methods.
    pub methods: Vec<String>,
    /// Downstream protocols.
    pub protocols: Vec<String>,
    /// Attacks.
    pub attacks: Vec<String>,
}

impl Part {
    /// Whether anything that is done with this distilled set (or this reference, whose `ipc` is `None`) is in the part.
    pub fn has_set(&self, dataset: &str, ipc: Option<usize>, method: &str) -> bool {
        takes(&self.datasets, dataset)
            && (self.ipcs.is_empty() || ipc.is_some_and(|ipc| self.ipcs.contains(&ipc)))
            && takes(&self.methods, method)
    }

    /// Whether the networks of this protocol under this attack are in the part, if their set is.
    pub fn has_attack(&self, protocol: &str, attack: &str) -> bool {
        takes(&self.protocols, protocol) && takes(&self.attacks, attack)
    }
}

fn takes(wanted: &[String], value: &str) -> bool {
    wanted.is_empty() || wanted.iter().any(|wanted| wanted == value)
}
