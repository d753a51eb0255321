//! Which class a folder of images stands for, told by its name.

use std::collections::HashMap;

use crate::DatasetSpec;

/// Other names of classes that people give to folders.
const NICKNAMES: [(&str, &str); 5] = [
    ("plane", "airplane"),
    ("aeroplane", "airplane"),
    ("car", "automobile"),
    ("auto", "automobile"),
    ("lorry", "truck"),
];
/// How many folders an error lists.
const LISTED: usize = 12;

/// How the names of folders say which class is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassOrder {
    /// Folders are called as the classes, whatever the case and the marks between words, or by a nickname.
    Names,
    /// Folders are called as the WordNet ids of the classes.
    Wnids,
    /// Folders are numbered from 0.
    Numbers,
    /// Numbers count up, other names are sorted, because the names say nothing about the classes.
    Sorted,
}

/// The class of each folder, in the order of `names`, which are sorted.
///
/// * `sorted`: whether the order of the names may be taken for that of the classes where they say nothing else.
///
/// # Errors
/// In words: which names are of no class, what the sorted order would be, and what to do.
pub(crate) fn class_order(
    names: &[&str],
    spec: &DatasetSpec,
    sorted: bool,
) -> Result<(ClassOrder, Vec<usize>), String> {
    let n_classes = spec.classes.len();
    if names.len() != n_classes {
        return Err(format!("a folder for each of the {n_classes} classes of {}, found {}", spec.name, names.len()));
    }
    match (by_names(names, spec), sorted) {
        (Ok(found), false) => Ok(found),
        (Err(_), true) => {
            let mut classes = vec![0; n_classes];
            sorted_order(names).into_iter().enumerate().for_each(|(class, at)| classes[at] = class);
            Ok((ClassOrder::Sorted, classes))
        }
        (Ok(_), true) => {
            Err("folders whose names do not identify the classes, because option `sorted` was given; these names do, so leave it out"
                .to_owned())
        }
        (Err(unknown), false) => Err(refusal(names, &unknown, spec)),
    }
}

/// The class that a name says.
type ClassOf<'a> = &'a dyn Fn(&str) -> Option<usize>;

/// What all names say together, or those that are of no class.
fn by_names(names: &[&str], spec: &DatasetSpec) -> Result<(ClassOrder, Vec<usize>), Vec<String>> {
    let of = |class_of: ClassOf<'_>| -> Option<Vec<usize>> {
        let classes: Vec<usize> = names.iter().map(|name| class_of(name)).collect::<Option<_>>()?;
        let mut seen = vec![false; spec.classes.len()];
        classes.iter().all(|&class| !std::mem::replace(&mut seen[class], true)).then_some(classes)
    };
    let exactly = |known: &[String], name: &str| known.iter().position(|other| other == name);
    let plain: HashMap<String, usize> =
        spec.classes.iter().enumerate().map(|(class, name)| (letters(name), class)).collect();
    let nearly = |name: &str| {
        let name = letters(name);
        let nickname = || NICKNAMES.iter().find(|(nickname, _)| *nickname == name);
        plain.get(&name).or_else(|| plain.get(nickname()?.1)).copied()
    };
    let by_number =
        |name: &str| number(name).and_then(|number| usize::try_from(number).ok()).filter(|&n| n < names.len());
    let orders: [(ClassOrder, ClassOf<'_>); 4] = [
        (ClassOrder::Names, &|name| exactly(&spec.classes, name)),
        (ClassOrder::Wnids, &|name| exactly(&spec.wnids, name)),
        (ClassOrder::Numbers, &by_number),
        (ClassOrder::Names, &nearly),
    ];
    let found = orders.into_iter().find_map(|(order, class_of)| of(class_of).map(|classes| (order, classes)));
    found.ok_or_else(|| names.iter().filter(|name| nearly(name).is_none()).map(|name| (*name).to_owned()).collect())
}

/// Letters and digits, small.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The number that is the whole name.
fn number(name: &str) -> Option<u64> {
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok()).flatten()
}

/// Positions in `names`: numbers count up, before other names.
fn sorted_order(names: &[&str]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|&at| (number(names[at]).unwrap_or(u64::MAX), names[at]));
    order
}

fn refusal(names: &[&str], unknown: &[String], spec: &DatasetSpec) -> String {
    let listed = |items: Vec<String>| {
        let more = if items.len() > LISTED { ", ..." } else { "" };
        format!("{}{more}", items.into_iter().take(LISTED).collect::<Vec<_>>().join(", "))
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
    numbers.sort_unstable();
    if numbers.iter().copied().eq(1..=names.len() as u64) {
        let (n, last) = (names.len(), names.len() - 1);
        return format!(
            "folders that are numbered from 0, found 1 to {n}: if folder 1 holds class 0 (`{}`), rename 1 to 0, then 2 to 1, up \
             to {n} to {last}; or name the folders after the classes",
            spec.classes[0]
        );
    }
    let order = sorted_order(names);
    let pairs = order.iter().zip(&spec.classes).map(|(&at, class)| format!("{} = {class}", names[at])).collect();
    let unknown = match unknown {
        [] => "two have the name of one class".to_owned(),
        names => format!("no class is called {}", listed(names.to_vec())),
    };
    format!(
        "folders that are named after the classes of {}, after their WordNet ids, or by number from 0; {unknown}. In sorted \
         order they would be {}: if that is right, use option `sorted`, otherwise rename them",
        spec.name,
        listed(pairs)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIFAR10: [&str; 10] =
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

    fn order(names: &[&str], sorted: bool) -> Result<(ClassOrder, Vec<usize>), String> {
        let mut names = names.to_vec();
        names.sort_unstable();
        class_order(&names, &crate::spec("cifar10").unwrap(), sorted)
    }

    #[test]
    fn names_ids_and_numbers_say_which_class() {
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(order(&CIFAR10, false).unwrap(), (ClassOrder::Names, all.clone()));
        let numbers: Vec<String> = (0..10).map(|class| format!("{class:05}")).collect();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        assert_eq!(order(&numbers, false).unwrap(), (ClassOrder::Numbers, all));
        // Sorted: Airplane, Bird, car, cat, deer, ... by bytes, capitals first.
        let nicknames = ["plane", "car", "Bird", "CAT", "deer", "dog", "frog", "horse", "ship", "truck"];
        let (how, classes) = order(&nicknames, false).unwrap();
        assert_eq!((how, classes), (ClassOrder::Names, vec![2, 3, 1, 4, 5, 6, 7, 0, 8, 9]));
        let tiny = crate::spec("imagenette").unwrap();
        let mut wnids: Vec<&str> = tiny.wnids.iter().map(String::as_str).collect();
        wnids.sort_unstable();
        assert_eq!(class_order(&wnids, &tiny, false).unwrap().0, ClassOrder::Wnids);
        let flat =
            ["tench", "english_springer", "cassette-player", "chain saw", "church", "FrenchHorn", "garbage_truck"];
        let flat = [&flat[..], &["gas_pump", "golf_ball", "parachute"]].concat();
        assert_eq!(class_order(&flat, &tiny, false).unwrap(), (ClassOrder::Names, (0..10).collect()));
    }

    #[test]
    fn what_the_names_do_not_say_is_not_guessed() {
        let from_one: Vec<String> = (1..=10).map(|class| class.to_string()).collect();
        let from_one: Vec<&str> = from_one.iter().map(String::as_str).collect();
        let message = order(&from_one, false).unwrap_err();
        assert!(message.contains("numbered from 0, found 1 to 10") && message.contains("(`airplane`), rename 1 to 0"));
        // 1, 10, 2, ... are sorted as texts, and count as numbers.
        assert_eq!(order(&from_one, true).unwrap(), (ClassOrder::Sorted, vec![0, 9, 1, 2, 3, 4, 5, 6, 7, 8]));

        let mut other = CIFAR10;
        other[0] = "zeppelin";
        let message = order(&other, false).unwrap_err();
        for part in ["no class is called zeppelin.", "automobile = airplane, bird = automobile", "option `sorted`"] {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
        other[0] = "car";
        assert!(order(&other, false).unwrap_err().contains("two have the name of one class"));
        assert!(order(&CIFAR10, true).unwrap_err().contains("these names do, so leave it out"));
        assert!(order(&CIFAR10[1..], false).unwrap_err().contains("10 classes of cifar10, found 9"));
    }
}
