//! Results with many rows: columns for people, a JSON object a line for programs.

/// Each object on a line of its own.
pub(super) fn lines(objects: impl Iterator<Item = serde_json::Value>) -> String {
    objects.flat_map(|object| [object.to_string(), "\n".to_owned()]).collect()
}

/// Columns as wide as their widest cell, two spaces between them.
pub(super) fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = heads.iter().map(ToString::to_string).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), "2".to_owned()]];
        assert_eq!(table(&["T", "N"], rows.into_iter()), "T       N\na       1\nlonger  2\n");
    }
}
