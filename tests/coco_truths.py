"""Small COCO truths and result lists for the tests of the scores."""


def make_truth(objects, image_ids=(1, 2), category_ids=(1,)):
    """Returns the smallest truth: no info, crowd flags, areas or masks. Objects: (image, category, xywh)."""
    return {
        "images": [{"id": image_id, "height": 200, "width": 200} for image_id in image_ids],
        "categories": [{"id": category_id, "name": f"class {category_id}"} for category_id in category_ids],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": list(box)}
            for number, (image, category, box) in enumerate(objects)
        ],
    }


def make_results(found):
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, each, strict=True)) for each in found]


def perfect_results(truth):
    """Returns the truth as predictions, without crowds."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [
        {**{key: annotation[key] for key in keys if key in annotation}, "score": 1.0}
        for annotation in truth["annotations"]
        if not annotation.get("iscrowd")
    ]
