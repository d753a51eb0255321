//! Writes the valid files of each target into its corpus: cargo run --release -p c2r-fuzz --example seeds

use std::{fs, io};

fn main() -> io::Result<()> {
    for target in c2r_fuzz::TARGETS {
        fs::create_dir_all(target.corpus())?;
        for (name, bytes) in target.seeds() {
            fs::write(target.corpus().join(name), bytes)?;
        }
    }
    Ok(())
}
