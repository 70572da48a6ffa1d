//! `corelog group`: list, describe, reset, delete.

use corelog_client::{
    Admin, GroupDescription, GroupPartition, ListedGroup, MemberDescription, ResetPlan, ResetTo,
};
use corelog_core::topic::quantity::{format_bytes, format_millis};
use serde_json::json;
use std::time::Duration;

use super::args::{GroupArgs, GroupCommand};
use super::failure::Failure;
use super::table::{lines, table};
use super::{OutputFormat, connect};

pub(super) async fn run(args: GroupArgs, output: OutputFormat) -> Result<(), Failure> {
    let admin = connect(&args.client).await?.admin();
    match args.command {
        GroupCommand::List => list(&admin, output).await,
        GroupCommand::Describe { name } => describe(&name, &admin.describe_group(&name).await?, output),
        GroupCommand::Reset { name, topic, partition, to, shift, execute } => {
            let to = to.map(ResetTo::Place).or(shift.map(ResetTo::Shift));
            let to = to.ok_or_else(|| Failure::Usage("give --to or --shift".to_owned()))?;
            let partitions = (!partition.is_empty()).then_some(&partition[..]);
            let plan = admin.plan_reset(&name, &topic, partitions, to).await?;
            if execute {
                admin.reset(&plan).await?;
            }
            show_reset(&topic, &plan, execute, output)
        }
        GroupCommand::Delete { name, topic } => {
            let what = match &topic {
                None => {
                    admin.delete_group(&name).await?;
                    format!("deleted group {name}\n")
                }
                Some(topic) => {
                    admin.delete_group_offsets(&name, topic).await?;
                    format!("deleted the offsets of group {name} in topic {topic}\n")
                }
            };
            match output {
                OutputFormat::Text => print(&what),
                OutputFormat::Json => print(&format!("{}\n", json!({"deleted": name, "topic": topic}))),
            }
        }
    }
}

async fn list(admin: &Admin, output: OutputFormat) -> Result<(), Failure> {
    let groups = admin.list_groups().await?;
    let text = match output {
        OutputFormat::Json => {
            lines(groups.iter().map(|group| json!({"name": group.name, "members": group.members})))
        }
        OutputFormat::Text if groups.is_empty() => {
            "no groups yet: `corelog consume TOPIC --group NAME` makes one\n".to_owned()
        }
        OutputFormat::Text => {
            let row = |group: &ListedGroup| vec![group.name.clone(), group.members.to_string()];
            table(&["GROUP", "MEMBERS"], groups.iter().map(row))
        }
    };
    print(&text)
}

fn describe(name: &str, group: &GroupDescription, output: OutputFormat) -> Result<(), Failure> {
    let text = match output {
        OutputFormat::Json => {
            let members: Vec<_> = group.members.iter().map(member_json).collect();
            let partitions: Vec<_> = group.partitions.iter().map(partition_json).collect();
            let whole =
                json!({"name": name, "epoch": group.epoch, "members": members, "partitions": partitions});
            format!("{whole}\n")
        }
        OutputFormat::Text => {
            let members = table(
                &["MEMBER", "CLIENT", "INSTANCE", "PARTITIONS", "ASSIGNOR", "SESSION"],
                group.members.iter().map(|member| member_row(member, group)),
            );
            let heads = [
                "TOPIC",
                "PARTITION",
                "COMMITTED",
                "WATERMARK",
                "LAG",
                "BYTES",
                "BEHIND",
                "OVERTAKEN IN",
                "MEMBER",
            ];
            let partitions = table(&heads, group.partitions.iter().map(partition_row));
            let idle = if group.members.is_empty() { "no members\n".to_owned() } else { members };
            format!("group {name}, epoch {}\n\n{idle}\n{partitions}", group.epoch)
        }
    };
    print(&text)
}

/// How many records of a partition the group has not read, if that is known.
fn lag(row: &GroupPartition) -> Option<u64> {
    let lag = row.lag?;
    Some(lag.high_watermark.get().saturating_sub(row.committed.unwrap_or(lag.log_start).get()))
}

fn member_json(member: &MemberDescription) -> serde_json::Value {
    json!({
        "id": member.member.to_string(),
        "epoch": member.member_epoch.get(),
        "away": member.away,
        "client_name": member.wishes.client_name,
        "instance": member.wishes.instance,
        "assignor": member.wishes.assignor.name(),
        "session_timeout_ms": millis(member.wishes.session_timeout),
        "topics": member.wishes.topics,
        "patterns": member.wishes.patterns,
    })
}

fn partition_json(row: &GroupPartition) -> serde_json::Value {
    json!({
        "topic": row.topic,
        "partition": row.tp.partition,
        "member": row.member.map(|member| member.to_string()),
        "leaving": row.leaving,
        "committed": row.committed.map(corelog_wire::ids::Offset::get),
        "metadata": row.metadata,
        "log_start": row.lag.map(|lag| lag.log_start.get()),
        "high_watermark": row.lag.map(|lag| lag.high_watermark.get()),
        "lag_records": lag(row),
        "lag_bytes": row.lag.map(|lag| lag.bytes),
        "lag_ms": row.lag.map(|lag| millis(lag.behind)),
        "overtaken_in_ms": row.lag.and_then(|lag| lag.overtaken_in).map(millis),
    })
}

fn member_row(member: &MemberDescription, group: &GroupDescription) -> Vec<String> {
    let held = group.partitions.iter().filter(|row| row.member == Some(member.member)).count();
    let instance = member.wishes.instance.clone().unwrap_or_default();
    vec![
        member.member.to_string(),
        member.wishes.client_name.clone(),
        if member.away { format!("{instance} (away)") } else { instance },
        held.to_string(),
        member.wishes.assignor.name().to_owned(),
        format_millis(millis(member.wishes.session_timeout)),
    ]
}

fn partition_row(row: &GroupPartition) -> Vec<String> {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let time = |duration: Duration| format_millis(coarse(millis(duration)));
    let holder = row.member.map(|member| member.to_string());
    vec![
        if row.topic.is_empty() { row.tp.topic.to_string() } else { row.topic.clone() },
        row.tp.partition.to_string(),
        known(row.committed.map(|offset| offset.to_string())),
        known(row.lag.map(|lag| lag.high_watermark.to_string())),
        known(lag(row).map(|lag| lag.to_string())),
        known(row.lag.map(|lag| format_bytes(lag.bytes))),
        known(row.lag.map(|lag| time(lag.behind))),
        known(row.lag.and_then(|lag| lag.overtaken_in).map(time)),
        known(holder.map(|holder| if row.leaving { format!("{holder} (leaving)") } else { holder })),
    ]
}

fn show_reset(topic: &str, plan: &ResetPlan, done: bool, output: OutputFormat) -> Result<(), Failure> {
    let text = match output {
        OutputFormat::Json => lines(plan.rows.iter().map(|row| {
            json!({"topic": topic, "partition": row.partition, "before": row.before, "after": row.after, "done": done})
        })),
        OutputFormat::Text => {
            let rows = plan.rows.iter().map(|row| {
                let before = row.before.map_or_else(|| "-".to_owned(), |before| before.to_string());
                vec![topic.to_owned(), row.partition.to_string(), before, row.after.to_string()]
            });
            let shown = table(&["TOPIC", "PARTITION", "COMMITTED", "NEW"], rows);
            if done { shown } else { format!("{shown}\nnothing changed: add --execute to do it\n") }
        }
    };
    print(&text)
}

/// Times are for people: of a minute or more the milliseconds, of an hour or more the seconds do not matter.
fn coarse(millis: u64) -> u64 {
    let step = match millis {
        0..10_000 => 1,
        10_000..3_600_000 => 1_000,
        _ => 60_000,
    };
    millis / step * step
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn print(text: &str) -> Result<(), Failure> {
    super::print(text.as_bytes())
}
