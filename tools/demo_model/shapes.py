"""Openings and the first half of the story shapes, in a small line language.

A line that starts with ``*`` begins a beat and gives its first wording; lines that start with ``|`` give other
wordings of the same beat. ``+`` begins a beat that a short telling leaves out. ``%`` is a place where a paragraph may
end. ``<<``, ``--`` and ``>>`` enclose branches, of which one is told. A backslash at the end of a line continues it.
Inside a wording, ``[a|b|]`` is a choice and ``{slot}`` is filled from the cast; ``{a:slot}`` puts the right article
before it, ``{A:slot}`` the same with a capital letter.
"""

from __future__ import annotations

# Openings after which a story needs a new "one day".
HABITUAL = r"""
* Once upon a time, there [lived|was] {ahd} named {h}. [{He} lived|{His} home was] in {place}, {akind} {lies}.
| Once upon a time, in {akind} {lies}, there lived {ahd} named {h}.
| Once upon a time, {ahd} named {h} lived in {place}, {akind} {lies}.
| Once upon a time there was {ahd} called {h}, who lived in {akind} {lies}.
| Once there was {ahd} named {h} who lived near {s3} in {place}.
| There was once {ahd} named {h} who lived in {akind} {lies}.
| There once lived {ahd} named {h} in {akind} called {place}.
| Long ago, in {akind} {lies}, there lived {ahd} named {h}.
| Long, long ago there was {akind} called {place}, and in it lived {ahd} named {h}.
| In {akind} {lies}, there lived {ahd} named {h}.
| In {place}, {akind} {lies}, everyone knew {h}, {a:hn} with {a:mood} heart.
| In a small {kn} {lies} lived {ahd} whose name was {h}.
| Far away, in {akind} {lies}, there lived {ahd} named {h}.
| {h} was {ahd} who lived in {place}, {akind} {lies}.
| {h} lived in {akind} {lies}, [close to|not far from] {s3}.
| {h} had lived near {s3} in {place} for as long as {he} could remember.
| Not long ago, {ahd} named {h} lived in {akind} {lies}.
| Have you ever heard of {h}? {He} was {ahd} who lived in {place}, {akind} {lies}.
| This is the story of {h}, {ahd} who lived in {akind} {lies}.
| Let me tell you about {h}, {ahd} from {place}, {akind} {lies}.
| My {kin} used to tell me about {h}, {ahd} who lived in {akind} {lies}.
| I once knew {ahd} named {h}, who lived in {place}, {akind} {lies}.
| They still tell the story of {h} in {place}, {akind} {lies}.
| A long time ago, {ahd} named {h} lived beside {s3} in {place}.
| {Ahd} named {h} lived in {akind} {lies}.
| {Ahd} called {h} lived near {s3} in {akind} {lies}.
| Nobody in {place} was more {mood} than {h}, {a:hn} who lived near {s3}.
| Everybody in {place} liked {h}, {ahd} who lived not far from {s3}.
| Somewhere in {akind} {lies}, there lived {ahd} named {h}.
| The {hd} who lived near {s3} in {place} was called {h}.
| The {hd} was called {h}, and {he} lived in {akind} {lies}.
| The {hd} lived in {akind} {lies}. {His} name was {h}.
| The {hd} of {place} was called {h}.[ Everybody knew {him}.| {He} lived near {s3}.|]
| There was once {ahd} who lived in {akind} {lies}. {His} name was {h}.
| Once there was {ahd} who was called {h}. {He} lived in {akind} {lies}.
| {h} the {hn} lived in {akind} {lies}.
| {h} and {f} lived in {akind} {lies}. {h} was {ahd}, and {f} was {his} {fk}.
| {h} and {f} were seldom seen apart. {h} was {ahd} from {place}, {akind} {lies}, and {f} was {his} {fk}.
| The {hn} who lived near {s3} was named {h}, and {he} was the most {mood} {hn} in all of {place}.
"""

# What may follow a habitual opening.
HABITS = r"""
* {He} knew every path between {s3} and {s4}.
| Every morning {he} walked to {s3} to [watch the sun come up|listen to the birds|see what was new].
| {He} was fond of {treat}, long walks and good company.
| {He} always had time for a chat and a piece of {treat}.
| On most days {he} could be found near {s4}, [humming to {himself}|looking at the clouds|lost in thought].
| {He} asked more questions than anyone else, and {he} listened to the answers.
| People said that {he} could make a friend in the time it takes to eat an apple.
| {He} did not have much, but {he} was almost always cheerful.
"""

# Openings that already begin on one particular day.
SPECIFIC = r"""
* The {hd} was [already awake|hungry|in a hurry|alone|in a good mood] that morning. {His} name was {h}, and {he} \
lived in {akind} {lies}.
| One morning, {ahd} named {h} woke up before everyone else in {place}.
| One [bright|cold|fine|windy] morning, {ahd} named {h} walked to {s3} with a piece of {treat} in {his} pocket.
| One day, {ahd} named {h} was sitting near {s3} in {place}, watching the clouds.
| One afternoon, {ahd} named {h} was [walking|wandering] along the path from {s3} to {s4}.
| It was a [quiet|bright|cold|windy] morning in {place}, {akind} {lies}. {h}, {ahd}, was already awake.
| It was the first day of [spring|summer|autumn|winter], and {h}, {ahd} from {place}, had nothing to do.
| It was early when {h}, {ahd} from {place}, opened the window and looked toward {s3}.
| The sun had just come up over {place}, {akind} {lies}. {h}, {ahd}, was eating {treat} by the window.
| The day began like any other in {place}, {akind} {lies}. {h}, {ahd}, went to {s3} and came back again.
| On the first day of [spring|summer|autumn|winter], {ahd} named {h} went out to see {s3}.
| When the sun came up over {place}, {ahd} named {h} was already outside.
| When {h} opened the door that morning, all of {place} was [quiet|shining|still asleep].
| Early one morning, {ahd} named {h} set out from {place} with a basket full of {treat}.
| At the edge of {place}, near {s3}, {ahd} named {h} was whistling a tune.
| "What a [lovely|beautiful|fine] day!" said {h}. {He} was {ahd} from {place}, {akind} {lies}.
| "Today something will happen," said {h} to {himself}. {He} was {ahd} who lived near {s3} in {place}.
| Last [spring|summer|autumn|winter], {ahd} named {h} came to live in {place}, {akind} {lies}.
"""

LOST = r"""
* {h}'s most treasured possession was {ao}[|, a gift from {his} {kin}| that had once belonged to {his} {kin}].
| More than anything else, {h} loved {his} {oa}[|, and {he} took it everywhere].
| {h} had {ao} that went with {him} wherever {he} went.
%
* {Day}, {he} reached for it and found that it was gone.
| {Day}, {h} came home from {s1} and noticed that the {o} was missing.
| But {day}, the {o} was not in its usual place.
+ {His} heart sank. "Where could it be?" {he} whispered.
| {He} looked under the bed, behind the door and inside every drawer, but there was no sign of it.
| "Oh no," said {h}. "I must have dropped it somewhere."
* {f}, {fd}, saw {his} [sad|worried] face. "What is the matter?" {fhe} asked. "My {o} is gone," said {h}. \
"Then we will look for it together," said {f}.
| {He} told {f}, {fd}. "Two pairs of eyes are better than one," said {f}. "Let us go and look."
| {f}, {fd}, came to help at once. "We will not stop until we find it," {fhe} said.
* They searched near {s1} and all around {s2}.
| They looked behind {s1}, and then they walked slowly toward {s2}.
| First they went back to {s1}. Then they tried {s2}.
%
<<
+ Just as they were about to give up, they heard a soft sound in the grass.
| Suddenly {f} held up a hand. "Listen!" {fhe} whispered.
* There lay the {o}, and next to it slept {baby}. The poor little thing had been cold and lonely, and it had \
[pulled the {o} close|chosen the {o}] for company.
| Behind a stone was {baby}, curled up against the {o} as if it were a pillow.
* "You needed it more than I did," said {h} {softly}. {He} sat down and waited until the mother came back.
| {h} could not be angry. {He} stayed there until the mother came, and only then did {he} pick up the {o}.
+ After that, {h} often went back to visit. {He} never again worried about losing things, because {he} had found a \
new friend.
| {He} carried the {o} home that evening, and it seemed even more precious than before.
| "I lost one thing and found two," {he} told {f} on the way home.
--
* At last they passed the house of {e}. In the window stood the {o}, clean and bright.
| Then {f} stopped and pointed. There, in the window of {e}, was the {o}.
* "I found it on the path," said {e}. "It was dusty and muddy, so I wanted to clean it before I brought it back."
| {E} opened the door. "So it is yours!" {ehe} said. "I found it in the rain, and I did not want it to spoil."
+ {h} {smiled}. "Thank you," {he} said. "It has never looked so fine."
| "And I thought that I had lost it forever," said {h}. {He} was so {glad} that {he} hugged {e}.
* They all sat down together and shared some {treat} while {sky}.
| From then on, {h} and {f} visited {e} every week, and there was always {treat} on the table.
--
* All at once {f} began to laugh. "{h}," {fhe} said, "what is that hanging from your bag?"
| Then {f} looked at {h} from behind and started to giggle. "Turn around," {fhe} said. "No, all the way around!"
* {h} reached behind {him}. There was the {o}! {He} had tied it there that morning so that {he} would not lose it.
| There, tied to {h}'s own bag with a neat double knot, was the {o}. It had been there all day long.
+ {h} turned as red as a tomato, and then {he} laughed too.
| "Well," said {h}, "at least I know that I tie good knots."
+ "The best place to look first," said {f}, "is the place you never look." They laughed all the way home.
| They told the story at supper, and nobody laughed louder than {h}.
--
* Near the path they met a small child who was holding the {o} with both hands and smiling.
| On a bench sat a small child with the {o}. "The wind brought it to me," said the child proudly.
+ "I have never had {ao} of my own," the child said. {h} opened {his} mouth, and then {he} closed it again.
| The child looked so happy that {h} did not know what to say.
* {h} knelt down. "It is mine," {he} said {softly}, "but we can share it. You may have it on every second day."
| "Let us take turns," {h} said at last. "You can keep it until Sunday, and then I will come and visit you."
* And that is what they did. The {o} soon had two homes, and {h} had a new friend.
| So the {o} went back and forth between them, and nobody could say any longer which of them loved it more.
>>
"""

TRADE = r"""
* {Day}, {h} saw {ao} in the window of {e}, and {he} could think of nothing else.
| {Day}, {h} walked past the house of {e} and saw {ao} in the window. It was the finest {o} in {place}.
* {He} had no money, only {ap} that {he} had kept since {he} was small.
| But {his} pockets were empty except for {ap}.
* "I do not need {ap}," said {e} {kindly}, "but bring me {aq}, and the {o} is yours."
| {E} shook {ehis} head. "{A:p} is no use to me," {ehe} said. "What I really need is {aq}."
%
* So {h} went to see {f}, {fd}, who lived near {s1}.
| {h} asked at {s1} and {he} asked at {s2}. At last {he} came to {f}, {fd}.
* "I do have {aq}," said {f}, "and I have been looking for {ap} all week." They traded on the spot.
| {f} had {aq}, and when {fhe} saw the {p}, {fhis} eyes grew wide. "Will you swap?" {fhe} asked. They shook hands.
* {h} ran back to {e} with the {q}, and a moment later the {o} was in {his} arms.
| {E} was {glad} to have the {q}, and {h} went home with the {oa}, singing.
%
* But that evening {he} looked at the empty place where the {p} had been, and {he} felt a little sad.
| Yet when {he} went to bed, {he} found that {he} missed {his} old {p}.
<<
* Then there was a knock at the door. It was {f}, with the {p} in {fhis} hand. "I only needed it for one day," {fhe} \
said. \
"Now you have both."
| The next morning {f} stood at the door. "Here is your {p}," {fhe} said. "I wanted to show it to my {kin2}, and now \
I have."
+ "No," said {h}. "Now we have both." And they took the {o} outside and shared it until {sky}.
| {h} was so {glad} that {he} put the {o} into {f}'s hands. "Then this belongs to both of us," {he} said.
--
* In the morning {he} took the {o} to {s1}, where {f} was sitting alone with the {p}. {f} looked as unhappy as {h} felt.
| The next day {he} met {f}, who was missing the {q} just as much.
* They looked at each other and began to laugh. "Let us keep everything together," said {h}, "and then neither of us \
will \
have to miss anything."
| "I have an idea," said {h}. "What if we put all our treasures into one box?" {f} nodded happily.
+ So they built a little shelf near {s2}, and everyone in {place} was allowed to borrow from it.
| From that day on they shared everything, and it turned out that sharing was the best trade of all.
>>
"""

STORM = r"""
* {h} owned {al}, which {his} {kin} had given {him}.
| The only valuable thing that {h} owned was {al}. It was old, but {he} took good care of it.
* {Day}, dark clouds rolled over {place}. The wind began to howl, and soon the rain was coming down in sheets.
| {Day}, a storm came up without any warning. Thunder shook the windows, and the path to {s1} disappeared in the rain.
| {Day}, the sky turned grey, then black, and then the storm broke.
%
* "{f} is still out there!" cried somebody. {f} was {h}'s {fk}, and {fhe} had gone to {s1} that morning.
| Then {h} remembered that {f}, {fd}, had gone to {s1} and had not come back.
* {h} was afraid of storms, but {he} did not stop to think. {He} took the {l} and ran to {s2}.
| {h}'s knees were shaking. All the same, {he} put on {his} coat, took the {l} and climbed up to {s2}.
* {use} again and again, hour after hour.
| {use} until {his} arms ached.
* Far away in the dark, {f} {noticed} it. Step by step {fhe} followed it through the rain.
| At last a small shape came out of the darkness. It was {f}, wet from head to toe. "I {followed} your {l}," {fhe} said.
%
<<
* And {f} was not alone. Behind {fhim} came {e}, who had been lost as well, and after them came {baby}.
| But the storm had one more surprise. Behind {f} walked six strangers, a whole family who had lost their way.
* They all crowded around the stove, drank something hot and listened to the wind together.
| Soon {h}'s little kitchen was full of steam, wet socks and laughter.
+ "Such a small {l}," said {f}, "and such a big heart to carry it."
| After that night nobody in {place} ever called the {l} old again. They called it the storm {l}.
--
* "I was not lost," said {f}, out of breath. "I was out looking for you! Someone told me that you had gone to {s1}."
| {f} started to laugh. "I was safe and dry at {s1}," {fhe} said. "I came out because I thought that you were in \
trouble!"
+ They stared at each other, two wet friends in the rain, each of whom had come to save the other.
| So each had gone out into the storm for the other, and now they were both soaked.
+ "Next time," said {h}, "let us both stay home." And they went inside, arm in arm, for some {treat}.
| {h} {smiled}. "Then we have both been rescued," {he} said, and they went home to get warm.
>>
"""

GIFT = r"""
* {Day}, {h} found {ao} on {his} doorstep. There was no note.
| {Day}, there was something new in front of {h}'s door: {ao}, wrapped in a [leaf|piece of blue paper|bit of cloth].
* The next morning there was {ap}, and the morning after that there was {aq}.
| The day after that {he} found {ap}, and on the third day {he} found {aq}.
+ "Who could be so kind?" {h} wondered.
| {h} asked everyone from {s1} to {s2}, but nobody knew anything about it.
| "Is it you?" {he} asked {f}, {fd}. "I wish that I had thought of it," said {f}, "but it is not me."
%
* That night {he} decided to stay awake. {He} hid behind the curtain and waited.
| So {h} made a plan. When it was dark, {he} sat down behind the water barrel and kept very still.
+ The hours went by slowly. Then, just before dawn, {he} heard footsteps.
| The moon rose, and a dog barked far away. At last the gate creaked.
<<
* It was {e}, who hardly ever spoke to anyone. {eHe} was carrying a small parcel in both hands.
| Out of the mist came {e}, walking on tiptoe.
* "So it was you!" said {h}. {E} almost dropped the parcel.
| {h} stepped out. "Good morning," {he} said {softly}. {E} blushed.
* "Last winter, when I was ill, somebody left soup at my door," said {e}. "I knew that it was you. I never found the \
words \
to thank you, so I looked for things instead."
| "You said hello to me every single day," said {e}, "even when I was too grumpy to answer. I wanted to say hello in \
my own \
way."
* "Then come in and have some {treat}," said {h}. And from that day on, they had breakfast together every week.
| {h} opened the door wide. "The best gift," {he} said, "would be if you stayed for breakfast." And {e} did.
--
* It was a crow, as black as ink, with something shining in its beak.
| A grey bird landed on the step and put down a shiny thing with great care.
* Then {h} understood. In the winter {he} had found a bird with a hurt wing, and {he} had fed it until it could fly \
again.
| "I know you!" whispered {h}. It was the bird that {he} had pulled out of the snow last winter.
+ The bird looked at {him} with one bright eye, bowed its head and flew up into the pink sky.
| The bird hopped onto {his} knee for a moment, as light as a leaf, and then it was gone.
+ {h} kept the {o} by the window for the rest of {his} life, and every morning {he} left a few crumbs beside it.
| {h} told only {f} about it. Together they built a little house for the bird near {s1}, and the next spring it moved \
in.
>>
"""

RACE = r"""
* Once a year there was a great race from {s1} to {s2}, and this time the prize was {ao}.
| {Day}, everybody was talking about the race from {s1} to {s2}. The winner would get {ao}.
* {h} had practiced for weeks. "This year I will win," {he} told {f}, {fd}.
| {h} had never won anything, but {he} wanted that {o} with all {his} heart. {f}, {fd}, was going to run too.
%
* The horn blew, and off they went. {h} ran faster than ever, and soon {he} was in front.
| "Ready, set, go!" The runners flew down the path, and {h} was the first to reach the corner.
* Halfway there, {he} saw {e} sitting beside the path. {eHis} basket had tipped over, and apples were rolling \
everywhere.
| Then, behind a bend, {he} came upon {e}, who had slipped and could not get up again.
* {h} looked at the path, and {he} looked at {e}. Then {he} stopped.
| The others were close behind. {h} took one more step, sighed and turned around.
+ "Go on, or you will lose," said {e}. "Some things are more important," said {h}, and {he} helped {ehim} without \
hurrying.
| {He} helped {ehim} while all the other runners went past, one after another.
%
<<
* {h} came in last, side by side with {e}. But when the crowd grew quiet, {e} stepped forward. "I am the judge this \
year," \
{ehe} said, "and I was watching for the best runner. I think that I have found one."
| When they reached {s2}, the race was long over. Then everybody stood aside for {e}, who had brought the prize. "It \
was my \
{o}," {ehe} said, "and I know who should have it."
+ {h} could hardly believe it when the {oa} was placed in {his} hands, and the loudest cheer of all came from {f}.
| {f} cheered the loudest of all. And {h} decided that there was room for two names on the {o}.
--
* {h} came in last of all. {f} had won, and {fhe} was holding the {o} high in the air.
| By the time {h} reached {s2}, the race was over, and {f} was standing there with the prize.
* Then {f} heard why {h} was late, and {fhe} walked over. "I won the running," {fhe} said, "but you won the race. Let \
us share \
it."
| "I saw what you did," said {f}. "I ran right past and did not stop. This should be yours." "Ours," said {h}.
+ So the {o} spent one month in one house and one month in the other, and both of them were proud of it.
| They carried the {o} home between them, and on the way {e} gave them each a red apple.
>>
"""

MISTAKEN = r"""
* {Day}, {h} found {ao} in the grass near {s1}. Somebody must have lost it.
| {Day}, something caught {h}'s eye near {s1}. It was {ao}, and there was nobody to be seen.
* "I am sure that it belongs to {f}," {he} thought, and {he} set off at once.
| {h} thought at once of {f}, {fd}, who was always losing things.
* But {f} shook {fhis} head. "It is lovely," {fhe} said, "but mine is right here. Why not ask {e}?"
| "What a nice {o}!" said {f}. "It is not mine, though. Perhaps {e} has lost one."
* So they walked together to {s2}, where {e} was sitting in the sun.
| Together they went to look for {e}, and they found {ehim} near {s2}.
%
<<
* {E} turned the {o} over and over. "There are two letters scratched into the bottom," {ehe} said. "Look, {h}. They \
are the \
first letters of your own {kin}'s name!"
| {E} put on {ehis} glasses. "I remember this," {ehe} said slowly. "I saw it many years ago in the hands of your \
{kin}, {h}."
* {h} ran all the way home. When {his} {kin} saw the {o}, there was a long silence. "I lost that when I was your \
age," came \
the answer at last. "I looked for it all summer."
| {h}'s {kin} held the {o} for a long time without a word. Then came a smile, and after the smile a story about a \
summer \
long ago.
+ "I went all over {place} to find the owner," said {h}, "and the owner was at home the whole time."
| And so the {o} came home after all those years, and {h} learned a new story that evening.
--
* {E} took one look and jumped to {ehis} feet. "My {o}!" {ehe} cried. "I lost it on the day of the great flood."
| When {e} saw the {o}, {ehis} eyes filled with tears. "I never thought that I would see it again," {ehe} said.
* "How can I thank you?" {ehe} asked. {h} thought about it. "Tell us where it came from," {he} said.
| "Sit down," {ehe} said, "and I will tell you how I got it."
* And {e} told them a story of ships, snow and a promise, until {sky}.
| The story was long and wonderful, and there was {treat} to go with it.
+ On the way home {f} said, "You could have kept it." "Yes," said {h}, "but then we would never have heard the story."
| After that, {h} and {f} often came back to hear another one. {E} never ran out of stories.
--
* "It is not mine either," said {e}, "but I can tell you something. It was left there on purpose."
| {E} began to chuckle. "Turn it over," {ehe} said.
* There was a tiny note stuck to the bottom. It said: "Whoever finds this may keep it, if they leave something in its \
place."
| On the bottom somebody had written in small letters: "Please keep me for a while, and then pass me on."
* {h} thought for a moment. Then {he} put {ap} on the same spot and hid behind a bush with {f} to see who would come.
| So {h} kept the {o} for exactly one week. Then {he} left it near {s2}, where a stranger would be sure to see it.
* Before long, somebody came along the path, stopped and smiled. That smile was the best thing that {h} found that day.
| Somewhere in {place} it is still going from hand to hand, and everyone who finds it smiles.
>>
"""

REPAIR = r"""
* {Day}, {h} took out {his} {ma} and saw that it {broken}.
| {h} had {am} that {he} loved. But {day}, {he} saw that it {broken}.
* "It cannot be mended," said the neighbors. "Throw it away and get a new one."
| Everyone said the same thing: "That is the end of it."
+ But {h} did not want a new one. {He} had owned that {m} since {he} was very small.
| {h} shook {his} head. It had been a present from {his} {kin}, and {he} was not going to give up so easily.
%
+ {He} tried string. {He} tried glue. Nothing worked, and in the end {he} sat near {s1} with the {m} in {his} lap.
| All morning {he} worked on it with a bit of string and a bent nail, but it only got worse.
* {f}, {fd}, sat down beside {him}. "Perhaps {e} can help us," {fhe} said.
| "We could ask {e}," said {f}, {fd}, who had been watching. "I will come with you."
* {E} looked at the {m} for a long time. "I will not mend it for you," {ehe} said, "but I will show you how."
| "I know what it needs," said {e}. "But my hands are too stiff. You will have to do it yourself."
+ They needed {cure}, and finding that took the whole afternoon.
| It took {cure}, three tries and a great deal of patience.
%
* When the work was done, the {m} {after}.
| At last it was finished. {h} held {his} breath. The {m} {after}.
<<
* You could still see where it had been broken. "Shall I paint over it?" asked {f}. "No," said {h}. "That is my \
favorite part."
| The place where it had been broken could still be seen, and {h} was proud of it. "Now it has a story," {he} said.
--
+ Soon other people came with broken things of their own, and {h} and {f} mended them all.
| A week later somebody brought {h} a broken chair, and then somebody brought a clock. "Can you help?" they asked, \
and {he} could.
+ And the neighbors never said "Throw it away" again. They said, "Take it to {h}."
| {E} watched from the door and smiled. That had been {ehis} plan from the beginning.
>>
"""
