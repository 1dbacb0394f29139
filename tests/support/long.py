"""Which tests are left to ``make test-long``, as each costs seconds once more.

What is left to it is one more client of S3, one more way to start workers, one more version of the
format, one more example: every kind of them has a test in ``make test`` too, but for what stands
under "in no shorter way". Besides these, tests that need minutes bear the mark ``long`` where they
stand.
"""

from __future__ import annotations

import re

PATTERNS = (
    # Ends of a connection, of which each kind is met once.
    r"test_hostile_redis\.py::test_replies_end\[hiredis-(?!nothing|after)",
    r"test_hostile_servers\.py::test_answers_that_lack\w*\[s3fs-200 OK-(?!keys)",
    r"test_faults\.py::test_a_lasting_fault\w*\[(s3fs|obstore)-(?!refused)",
    r"test_faults_passing\.py::test_any_one_request_may_fail\[.*-reply lost\]",
    # One client of S3 more, where what is tested does not lie in the client.
    r"test_s3\.py::Test(MotoWithObstore|Ceph\w*)::",
    r"test_faults_passing\.py::.*\[obstore-",
    r"test_foreign_files\.py::.*\[(obstore|s3fs-3)",
    r"test_foreign_files\.py::test_files_of_others\w*\[s3fs-(?!dotted)",
    r"test_fencing\.py::test_one_that_replaces_or_deletes\[rgw-",
    r"test_fencing\.py::test_so_does_one_that_adds_records\[moto-",
    r"test_copies\.py::test_every_change_on_every_driver\[v\d-(s3fs|obstore)",
    r"test_fencing\.py::test_a_holder_that_wakes_late\w*\[(moto-obstore|rgw-s3fs)",
    r"test_s3_faults\.py::.*\[obstore",
    r"test_hostile_servers\.py::test_listings_of_s3_end\[obstore-",
    r"test_unfinished\.py::.*\[obstore",
    r"test_remote\.py::.*\[obstore-",
    r"test_remote_secrets\.py::test_where_no_server_is\[(ob|zip|redis |rediss|unix|http )",
    r"test_fsspec\.py::TestObjectStore::",
    r"test_s3_obstore_failures\.py::test_lost_connections",
    # One way more to reach a server.
    r"test_redis_contract\.py::Test(ValkeyWithoutPrefix|UnixSocket|Expiring|Password|Tls)",
    # More of the same.
    r"test_group_hostile\.py::test_documents_that_nest_deeper\w*\[.*-1000000",
    r"in_place/test_arrays\.py::test_every_fixed_type\w*\[python-",
    r"in_place/test_redis\.py::test_every_selection",
    # One format more.
    r"test_group_consolidated\.py::test_members_take_little_more_memory\w*\[v2-",
    r"test_copies_faults\.py::test_a_kill_between_any_two_steps\[v2-",
    r"test_group_consolidated\.py::test_the_work_grows\w*\[v2-",
    r"test_links_elsewhere\.py::test_what_links_lead_to_stays\[(fsspec in|zarr, wrapped)",
    # One way to start workers more.
    r"test_dataloader\.py::(?!test_every_row_once).*(spawn|forkserver)",
    r"test_dataloader\.py::test_every_row_once\[(spawn|forkserver)-untouched",
    r"test_records_dataloader\.py::(?!test_every_start_method).*(spawn|forkserver)",
    r"test_remote_loader\.py::.*\[.*(spawn|forkserver|obstore)",
    r"test_s3_arrays\.py::test_processes_write_parts\w*\[(spawn|fork-shard)",
    r"test_s3_arrays\.py::test_appends_of_processes\w*\[spawn",
    r"test_(mix|present|named_cost)\.py::.*\[(spawn|forkserver)",
    r"test_loader_workers\.py::test_workers_as_ranks\[(1-4|3-2)",
    r"test_loader_workers\.py::test_a_loader_that_gives\w*\[StatefulDataLoader-",
    # One more program that is run.
    r"test_servers\.py::test_one_line_says_what_was_skipped\w*\[spread",
    r"test_benchmark_pictures\.py::",
    r"test_examples\.py::test_example_runs\[(?!demo|slicing)",
    r"test_readme\.py::test_blocks_run_twice\w*\[(?!prompt-fork\])",
    # In no shorter way: servers that end and begin again, what is fetched or installed first, or
    # is shown by large numbers alone.
    r"test_zip_damage\.py::test_a_hundred_thousand_members",
    r"test_foreign_files\.py::test_deleting_needs_no_memory",
    r"test_faults_restart\.py::",
    r"test_readme\.py::test_installed_as_it_says",
    r"test_numcodecs_golden\.py::",
)
LONG = re.compile("|".join(PATTERNS))
