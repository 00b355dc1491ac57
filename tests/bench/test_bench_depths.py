"""The picture of fixed queue depths, from a few seconds of each workload."""

import xml.etree.ElementTree as ElementTree

import _depths
from _svg import HEIGHT, WIDTH

SVG = "{http://www.w3.org/2000/svg}"


def test_a_point_for_every_depth_and_the_node_on_each_workload_inside_the_picture() -> None:
    found = {workload: _depths.simulated(workload, 20.0) for workload, _ in _depths.WORKLOADS}
    picture = ElementTree.fromstring(_depths.draw(found))
    assert picture.find(f"{SVG}title") is not None
    circles = picture.findall(f"{SVG}circle")
    legend = 2
    assert len(circles) == legend + len(_depths.WORKLOADS) * (len(_depths.DEPTHS) + 1)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= HEIGHT
