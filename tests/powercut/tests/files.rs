//! Bytes, lengths and names of plain files through a power cut.

#![allow(clippy::unwrap_used)]

mod rig;

use rig::Rig;

#[test]
fn synced_bytes_survive_every_mode_and_seed() {
    for seed in 0..10 {
        for mode in ["lost", "torn", "mixed"] {
            let rig = Rig::new();
            rig.python("f = durable('a', b'A' * 5000)\nos.pwrite(f, b'B' * 700, 5000)\nos.fdatasync(f)\n");
            let done = rig.undo(mode, seed);
            assert_eq!(done["files"], 0, "{mode} {seed}");
            assert_eq!(rig.read("a"), [vec![b'A'; 5000], vec![b'B'; 700]].concat());
        }
    }
}

#[test]
fn synced_prefix_survives_beside_torn_bytes() {
    for seed in 0..30 {
        let rig = Rig::new();
        rig.python("f = durable('a', b'A' * 4096)\nos.pwrite(f, b'B' * 4096, 4096)\n");
        rig.undo("torn", seed);
        assert!(rig.read("a").starts_with(&[b'A'; 4096]), "seed {seed}");
    }
}

#[test]
fn unsynced_bytes_are_lost_and_lengths_come_back() {
    let rig = Rig::new();
    rig.python("f = durable('a', b'old' * 100)\nos.pwrite(f, b'new' * 1000, 30)\n");
    assert_eq!(rig.read("a").len(), 3030);
    let status = rig.status();
    assert_eq!((&status["files"], &status["writes"], &status["bytes"]), (&1.into(), &1.into(), &3000.into()));
    let done = rig.undo("lost", 1);
    assert_eq!((&done["writes_undone"], &done["bytes_undone"]), (&1.into(), &3000.into()));
    assert_eq!(rig.read("a"), b"old".repeat(100));
    assert_eq!(rig.status()["files"], 0);
}

#[test]
fn two_writes_at_one_offset_give_back_the_first_content() {
    let rig = Rig::new();
    rig.python("f = durable('a', b'0000')\nos.pwrite(f, b'1111', 0)\nos.pwrite(f, b'2222', 0)\n");
    assert_eq!(rig.read("a"), b"2222");
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), b"0000");
}

#[test]
fn a_sync_between_two_writes_keeps_the_first() {
    let rig = Rig::new();
    rig.python(
        "f = durable('a', b'0000')\nos.pwrite(f, b'1111', 0)\nos.fsync(f)\nos.pwrite(f, b'2222', 0)\n",
    );
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), b"1111");
}

#[test]
fn truncated_bytes_come_back() {
    let rig = Rig::new();
    rig.python(
        "f = durable('a', b'x' * 3000000)\nos.ftruncate(f, 10)\nos.ftruncate(f, 50)\n\
         durable('b', b'y' * 99)\nos.close(os.open('b', os.O_WRONLY | os.O_TRUNC))\n\
         durable('c', b'z' * 99)\nos.truncate('c', 5)\n\
         g = durable('d', b'w' * 99)\nos.posix_fallocate(g, 0, 4096)\n",
    );
    assert_eq!(
        [rig.read("a").len(), rig.read("b").len(), rig.read("c").len(), rig.read("d").len()],
        [50, 0, 5, 4096]
    );
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), vec![b'x'; 3_000_000]);
    assert_eq!(rig.read("b"), vec![b'y'; 99]);
    assert_eq!(rig.read("c"), vec![b'z'; 99]);
    assert_eq!(rig.read("d"), vec![b'w'; 99]);
}

#[test]
fn write_only_append_and_vectored_writes_are_undone() {
    let rig = Rig::new();
    rig.python(
        "durable('a', b'a' * 9000)\nf = os.open('a', os.O_WRONLY)\nos.write(f, b'1' * 8500)\n\
         durable('b', b'b')\nf = os.open('b', os.O_WRONLY | os.O_APPEND)\nos.write(f, b'2')\nos.write(f, b'3')\n\
         f = durable('c', b'cccc')\nos.lseek(f, 1, 0)\nos.writev(f, [b'4', b'5'])\nos.pwritev(f, [b'6'], 3)\n\
         durable('from', b'F' * 100)\nt = durable('to', b'T' * 10)\ns = os.open('from', os.O_RDONLY)\n\
         os.lseek(t, 0, 0)\nos.copy_file_range(s, t, 100)\n",
    );
    assert_eq!(
        (rig.read("b"), rig.read("c"), rig.read("to")),
        (b"b23".to_vec(), b"c456".to_vec(), vec![b'F'; 100])
    );
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), vec![b'a'; 9000]);
    assert_eq!(
        (rig.read("b"), rig.read("c"), rig.read("to")),
        (b"b".to_vec(), b"cccc".to_vec(), vec![b'T'; 10])
    );
}

#[test]
fn torn_states_occur_and_mix_old_and_new_sectors() {
    let (mut states, mut reordered) = (std::collections::HashSet::new(), 0);
    for seed in 0..60 {
        let rig = Rig::new();
        rig.python(
            "f = durable('a', b'o' * 8192)\n\
             for i in range(4): os.pwrite(f, bytes([49 + i]) * 2048, i * 2048)\n",
        );
        rig.undo("torn", seed);
        let sectors: Vec<u8> = rig
            .read("a")
            .chunks(512)
            .map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is whole");
                sector[0]
            })
            .collect();
        // The last write survived while some of the first is gone.
        reordered += usize::from(sectors[12..] == [b'4'; 4] && sectors[..4].contains(&b'o'));
        states.insert(sectors);
    }
    assert!(states.len() > 10, "{} states", states.len());
    assert!(reordered > 0);
}

#[test]
fn one_seed_cuts_one_way() {
    let run = || {
        let rig = Rig::new();
        rig.python("for n in 'abc':\n  f = durable(n, b'o' * 4096)\n  os.pwrite(f, b'n' * 4096, 0)\n");
        (rig.undo("mixed", 7), rig.read("a"), rig.read("b"), rig.read("c"))
    };
    assert_eq!(run(), run());
}

#[test]
fn plain_kill_then_cut_undoes_both_runs() {
    let rig = Rig::new();
    rig.python("f = durable('a', b'0' * 10)\nos.pwrite(f, b'11', 0)\n");
    rig.python("f = make('a')\nos.pwrite(f, b'22', 4)\nos.pwrite(f, b'3', 0)\n");
    assert_eq!(rig.read("a"), b"3100220000");
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), b"0000000000");
}

#[test]
fn a_sync_in_the_next_run_keeps_the_bytes_of_the_last() {
    let rig = Rig::new();
    rig.python("f = durable('a', b'0000')\nos.pwrite(f, b'1', 0)\n");
    rig.python("f = make('a')\nos.fsync(f)\nos.pwrite(f, b'2', 1)\n");
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), b"1000");
}

#[test]
fn new_names_vanish_unless_the_file_or_folder_is_synced() {
    let rig = Rig::new();
    rig.python(
        "os.write(make('gone'), b'1')\nf = make('itself')\nos.fsync(f)\nos.mkdir('dir')\nsync_dir()\n\
         os.write(make('later'), b'1')\nos.write(make('dir/inside'), b'1')\nos.mkdir('lost')\n\
         os.mkdir('kept')\nsync_dir('kept')\n",
    );
    rig.undo("lost", 1);
    assert!(rig.has("gone"), "its folder was synced after it came");
    assert_eq!(rig.read("gone"), b"", "but not its bytes");
    assert!(rig.has("itself") && rig.has("dir") && rig.has("kept"));
    assert!(!rig.has("later") && !rig.has("dir/inside") && !rig.has("lost"));
}

#[test]
fn an_unsynced_rename_comes_back_with_its_target() {
    let rig = Rig::new();
    rig.python(
        "durable('new', b'new')\ndurable('name', b'old')\nos.rename('new', 'name')\n\
         durable('x', b'x')\nos.rename('x', 'y')\n",
    );
    assert_eq!(rig.read("name"), b"new");
    let done = rig.undo("lost", 1);
    // The first rename was followed by the folder sync of `durable`.
    assert_eq!(done["names_undone"], 1);
    assert_eq!((rig.read("name"), rig.read("x")), (b"new".to_vec(), b"x".to_vec()));
    assert!(!rig.has("y") && !rig.has("new"));

    rig.python("durable('new', b'newer')\nos.rename('new', 'name')\n");
    assert_eq!(rig.read("name"), b"newer");
    rig.undo("lost", 1);
    assert_eq!((rig.read("name"), rig.read("new")), (b"new".to_vec(), b"newer".to_vec()));
}

#[test]
fn a_raw_system_call_cannot_rename_behind_the_library() {
    let rig = Rig::new();
    rig.python(
        "import ctypes\nc = ctypes.CDLL(None)\ndurable('new', b'new')\ndurable('name', b'old')\n\
         assert c.syscall(82, b'new', b'name') == 0\nassert c.syscall(82, b'none', b'name') == -1\n",
    );
    assert_eq!(rig.read("name"), b"new");
    assert_eq!(rig.undo("lost", 1)["names_undone"], 1);
    assert_eq!((rig.read("name"), rig.read("new")), (b"old".to_vec(), b"new".to_vec()));
}

#[test]
fn an_unsynced_unlink_comes_back_with_its_unsynced_bytes_undone() {
    let rig = Rig::new();
    rig.python("f = durable('a', b'1234')\nos.pwrite(f, b'9', 0)\nos.unlink('a')\n");
    assert!(!rig.has("a"));
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), b"1234");

    rig.python("os.unlink('a')\nsync_dir()\nf = make('a')\nos.write(f, b'next')\nos.fsync(f)\n");
    rig.undo("lost", 1);
    assert_eq!(rig.read("a"), b"next");
}

#[test]
fn shared_memory_files_and_files_elsewhere_are_left_alone() {
    let rig = Rig::new();
    rig.python("os.write(make('db-shm'), b'1')\nos.write(make('../elsewhere'), b'1')\n");
    let done = rig.undo("lost", 1);
    assert_eq!((&done["files"], &done["names_undone"]), (&0.into(), &0.into()));
    assert!(rig.has("db-shm") && rig.has("../elsewhere"));
}

#[test]
fn the_log_shrinks_when_all_is_synced_and_is_rewritten_when_most_is() {
    let rig = Rig::new();
    // One file stays unsynced, so that the log cannot just be emptied.
    rig.python(
        "k = durable('kept', b'k' * 100)\nos.pwrite(k, b'?', 50)\nf = durable('a', b'x' * 1000000)\n\
         for i in range(200):\n  os.pwrite(f, bytes([i + 1]) * 1000000, 0)\n  os.fsync(f)\n",
    );
    let bytes = rig.status()["log_bytes"].as_u64().unwrap();
    assert!(bytes < 70 << 20, "{bytes} bytes");
    rig.undo("lost", 1);
    assert_eq!((rig.read("kept"), rig.read("a")), (vec![b'k'; 100], vec![200; 1_000_000]));

    rig.python("f = make('a')\nfor i in range(9):\n  os.pwrite(f, b'y' * 1000000, 0)\n  os.fsync(f)\n");
    let bytes = rig.status()["log_bytes"].as_u64().unwrap();
    assert!(bytes < 3 << 20, "{bytes} bytes");
}

#[test]
fn writes_of_many_threads_are_all_undone() {
    let rig = Rig::new();
    rig.python(
        "import threading\nfs = [durable('f%d' % i, b'0' * 4096) for i in range(4)]\n\
         def work(i):\n\
         \x20 for n in range(300):\n\
         \x20   os.pwrite(fs[i], b'1' * 100, n % 40 * 100)\n\
         \x20   os.pwrite(fs[(i + 1) % 4], b'2' * 64, n % 60 * 64)\n\
         ts = [threading.Thread(target=work, args=(i,)) for i in range(4)]\n\
         [t.start() for t in ts]\n[t.join() for t in ts]\n",
    );
    assert_eq!(rig.undo("lost", 1)["writes_undone"], 2400);
    for i in 0..4 {
        assert_eq!(rig.read(&format!("f{i}")), vec![b'0'; 4096]);
    }
}
