"""What the demo says when its test left no metrics."""

import json

import pytest

from tools.demo import newest_metrics

METRICS = {
    f'coco/{kind}_{column}': 0.5
    for kind in ('bbox', 'segm')
    for column in ('mAP', 'mAP_50', 'mAP_75')
}


@pytest.mark.parametrize(
    'content',
    [
        '',
        '{"coco/bbox_mAP":',
        '{"coco/bbox_mAP": 0.5}',
        '[]',
        json.dumps(METRICS | {'coco/segm_mAP': None}),
    ],
)
def test_metrics_that_are_not_complete_are_one_message(tmp_path, content):
    file = tmp_path / '20260102_000000/20260102_000000.json'
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(SystemExit, match=f'{file} does not contain the metrics of a test'):
        newest_metrics(tmp_path)


def test_no_metrics_are_one_message(tmp_path):
    with pytest.raises(SystemExit, match='wrote no metrics'):
        newest_metrics(tmp_path)


def test_the_newest_metrics_are_read(tmp_path):
    for time, value in (('20260101_000000', 0.1), ('20260102_000000', 0.9)):
        (tmp_path / time).mkdir()
        metrics = METRICS | {'coco/bbox_mAP': value}
        (tmp_path / time / f'{time}.json').write_text(json.dumps(metrics))
    assert newest_metrics(tmp_path)['coco/bbox_mAP'] == 0.9
