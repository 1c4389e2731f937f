"""nbgrader's exchange for the course: copy to /etc/jupyter/nbgrader_config.py."""

c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "saelearn"
c.Exchange.root = "/srv/nbgrader/exchange"
c.Exchange.path_includes_course = True  # a student's copy is at saelearn/autumn/
