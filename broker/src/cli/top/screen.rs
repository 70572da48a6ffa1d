//! The terminal: tables one above the other, and the keys that end it.

use std::io;
use std::sync::mpsc;
use std::thread;

use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use tokio::sync::mpsc as async_mpsc;

use super::view::{self, View};

/// The terminal, which is given back when this goes.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    /// Whether to go on, for each key that says something.
    keys: async_mpsc::UnboundedReceiver<bool>,
    /// The thread that reads keys ends when this goes.
    _over: mpsc::Sender<()>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        let (said, keys) = async_mpsc::unbounded_channel();
        let (over, ended) = mpsc::channel();
        thread::spawn(move || {
            while ended.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                // A look now and then, so that the thread ends soon after the screen.
                let Ok(true) = event::poll(std::time::Duration::from_millis(200)) else { continue };
                let goes_on = match event::read() {
                    Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                        let interrupted =
                            key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                        !(interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
                    }
                    // Another size.
                    Ok(_) => true,
                    Err(_) => false,
                };
                if said.send(goes_on).is_err() {
                    return;
                }
            }
        });
        Ok(Self { terminal, keys, _over: over })
    }

    /// Whether to go on, when somebody has said something.
    pub(super) async fn wants_more(&mut self) -> bool {
        self.keys.recv().await.unwrap_or(false)
    }

    pub(super) fn draw(&mut self, address: &str, view: &View, trouble: Option<&str>) -> io::Result<()> {
        self.terminal.draw(|frame| draw(frame, address, view, trouble)).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn draw(frame: &mut Frame<'_>, address: &str, view: &View, trouble: Option<&str>) {
    let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).saturating_add(3);
    let [head, shards, topics, groups, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(rows(view.shards.len())),
        Constraint::Fill(1),
        Constraint::Max(rows(view.groups.len()).min(12)),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Line::from(format!("{} at {address}", view.title())).bold(), head);
    part(frame, shards, "shards", view.shard_table());
    part(frame, topics, "topics, busiest first", view.topic_table());
    let title = if view.groups_left_out {
        "groups, furthest behind first (there are more: see corelog group list)"
    } else {
        "groups, furthest behind first"
    };
    part(frame, groups, title, view.group_table());
    let foot_text =
        trouble.map_or_else(|| Line::from("q ends it"), |trouble| Line::from(trouble.to_owned()).red());
    frame.render_widget(Paragraph::new(foot_text), foot);
}

fn part(frame: &mut Frame<'_>, area: Rect, title: &str, (heads, rows): view::Table) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<Constraint> = (0..heads.len())
        .map(|column| Constraint::Length(u16::try_from(width(column)).unwrap_or(u16::MAX)))
        .collect();
    let warned = |row: &Vec<String>| {
        row.iter().any(|cell| matches!(&cell[..], "POISONED" | "READ ONLY" | "DISK FULL"))
    };
    let lines = rows.iter().map(|row| {
        let style = if warned(row) { Style::new().red().bold() } else { Style::new() };
        Row::new(row.clone()).style(style)
    });
    let table = Table::new(lines, widths.clone())
        .header(Row::new(heads.to_vec()).style(Style::new().bold()))
        .block(Block::bordered().title(title.to_owned()))
        .column_spacing(2);
    frame.render_widget(table, area);
}
