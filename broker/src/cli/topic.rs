//! `corelog topic`: create, list, describe, alter, delete.

use corelog_client::{Admin, NewTopic, Topic, TopicChange, TopicDescription};
use serde_json::json;

use super::args::{TopicArgs, TopicCommand};
use super::failure::Failure;
use super::table::{lines, table};
use super::{OutputFormat, complain, connect};

pub(super) async fn run(args: TopicArgs, output: OutputFormat) -> Result<(), Failure> {
    let admin = connect(&args.client).await?.admin();
    match args.command {
        TopicCommand::Create { name, partitions, replication_factor, config, if_not_exists } => {
            let topic = NewTopic::partitions(partitions).replication_factor(replication_factor);
            let topic = config.into_iter().fold(topic, |topic, (name, value)| topic.config(name, value));
            if if_not_exists {
                admin.ensure_topic(&name, topic).await?;
            } else {
                admin.create_topic(&name, topic).await?;
            }
            created(&admin, &name, output).await
        }
        TopicCommand::List => list(&admin, output).await,
        TopicCommand::Describe { name } => describe(&name, &admin.describe_topic(&name).await?, output),
        TopicCommand::Alter { name, partitions, config, unset } => {
            if partitions.is_none() && config.is_empty() && unset.is_empty() {
                return Err(Failure::Usage(
                    "nothing to alter: give --partitions, --config or --unset".to_owned(),
                ));
            }
            let mut change = TopicChange::new();
            if let Some(partitions) = partitions {
                change = change.partitions(partitions);
            }
            let change = config.into_iter().fold(change, |change, (name, value)| change.set(name, value));
            let change = unset.into_iter().fold(change, TopicChange::unset);
            admin.alter_topic(&name, change).await?;
            if partitions.is_some() {
                complain(
                    "corelog: some keys belong to the new partitions from now on: readers may see their new records before \
                     their old ones, and a compacted topic keeps what they had",
                );
            }
            describe(&name, &admin.describe_topic(&name).await?, output)
        }
        TopicCommand::Delete { name } => {
            admin.delete_topic(&name).await?;
            match output {
                OutputFormat::Text => print(&format!("deleted topic {name}\n")),
                OutputFormat::Json => print(&format!("{}\n", json!({"deleted": name}))),
            }
        }
    }
}

async fn created(admin: &Admin, name: &str, output: OutputFormat) -> Result<(), Failure> {
    let topic = admin.topic(name).await?;
    let partitions = topic.partition_count();
    match output {
        OutputFormat::Text => {
            let s = if partitions == 1 { "" } else { "s" };
            print(&format!("topic {name} has {partitions} partition{s}\n"))
        }
        OutputFormat::Json => print(&format!("{}\n", summary(&topic))),
    }
}

fn summary(topic: &Topic) -> serde_json::Value {
    json!({"name": *topic.name, "id": topic.id.to_string(), "partitions": topic.partition_count()})
}

async fn list(admin: &Admin, output: OutputFormat) -> Result<(), Failure> {
    let topics = admin.list_topics().await?;
    let text = match output {
        OutputFormat::Json => lines(topics.iter().map(summary)),
        OutputFormat::Text if topics.is_empty() => {
            "no topics yet: `corelog topic create NAME` makes one\n".to_owned()
        }
        OutputFormat::Text => {
            let row = |topic: &Topic| vec![topic.name.to_string(), topic.partition_count().to_string()];
            table(&["TOPIC", "PARTITIONS"], topics.iter().map(row))
        }
    };
    print(&text)
}

fn describe(name: &str, topic: &TopicDescription, output: OutputFormat) -> Result<(), Failure> {
    let text = match output {
        OutputFormat::Json => {
            let config = topic.config.iter().map(|setting| {
                json!({"name": setting.name, "value": setting.value, "is_default": setting.is_default})
            });
            let partitions = topic.partitions.iter().map(|partition| {
                json!({
                    "partition": partition.partition,
                    "leader": partition.leader.map(corelog_wire::ids::BrokerId::get),
                    "leader_epoch": partition.leader_epoch.get(),
                    "shard": partition.shard.get(),
                    "log_start": partition.log_start.get(),
                    "high_watermark": partition.high_watermark.get(),
                    "log_end": partition.log_end.get(),
                    "bytes": partition.bytes,
                    "segments": partition.segments,
                })
            });
            let (config, partitions): (Vec<_>, Vec<_>) = (config.collect(), partitions.collect());
            let id = topic.id.to_string();
            format!("{}\n", json!({"name": name, "id": id, "config": config, "partitions": partitions}))
        }
        OutputFormat::Text => {
            let settings = topic.config.iter().map(|setting| {
                let whose = if setting.is_default { "default" } else { "topic" };
                vec![setting.name.clone(), setting.value.clone(), whose.to_owned()]
            });
            let partitions = topic.partitions.iter().map(|partition| {
                let leader = partition.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
                let numbers = [
                    partition.leader_epoch.get().into(),
                    partition.shard.get().into(),
                    partition.log_start.get(),
                    partition.high_watermark.get(),
                    partition.log_end.get(),
                    partition.bytes,
                    partition.segments.into(),
                ];
                let row = [partition.partition.to_string(), leader];
                row.into_iter().chain(numbers.iter().map(u64::to_string)).collect()
            });
            let heads =
                ["PARTITION", "LEADER", "EPOCH", "SHARD", "START", "WATERMARK", "END", "BYTES", "SEGMENTS"];
            let settings = table(&["SETTING", "VALUE", "FROM"], settings);
            format!("topic {name}, id {}\n\n{settings}\n{}", topic.id, table(&heads, partitions))
        }
    };
    print(&text)
}

fn print(text: &str) -> Result<(), Failure> {
    super::print(text.as_bytes())
}
