//! Text of others, as it is shown and kept.

/// `text`, made safe for a terminal and a log: what a terminal would obey is escaped.
///
/// ```
/// assert_eq!(ipcmutex::text::printable("a\n\u{1b}[2J"), "a\\n\\u{1b}[2J");
/// ```
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// As much of `text` as fits into `bytes`, cut between characters.
///
/// ```
/// assert_eq!(ipcmutex::text::cut("naïve", 3), "na");
/// ```
pub fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
