"""The second half of the story shapes; the line language is described in ``shapes.py``."""

from __future__ import annotations

BRAVE = r"""
* {Day}, there was a great noise near {s1}. {Baby} had [fallen into a deep hole|got stuck in a narrow gap between two \
rocks] \
and was crying for help.
| {Day}, everyone came running to {s1}. {Baby} had crawled into an old pipe and could not get out again.
* {E} tried with a rope, but the rope was too short. {f}, {h}'s {fk}, tried to reach in, but {fhis} arms were too big.
| {E} reached in with a long stick, but it was no use. Then {f}, {h}'s {fk}, tried, and {fhe} almost got stuck too.
+ "If only somebody were small enough," said {e}.
| "It is too narrow," said {f}. "None of us will fit."
%
* {h} had always hated being small. Now {he} swallowed hard and stepped forward. "I will go," {he} said.
| {h} was the smallest of them all, and {he} had never liked the dark. "I think that I can fit," {he} said in a thin \
voice.
+ {f} tied {ao2} around {his} waist. "Pull on it twice if you need us," {fhe} said.
| They gave {him} {alight} to see by, and {f} promised to wait right there.
+ Down {he} went, inch by inch. It was dark and cold, and {he} sang a little song to keep up {his} courage.
| It was black inside, and {his} heart was beating like a drum. "I am coming," {he} called. "Do not be afraid."
* At last {his} fingers touched something warm and trembling. {He} tucked it under {his} coat and crawled back to the \
light.
| Then {he} saw two bright eyes. "There you are," {he} whispered, and very gently {he} carried the little thing out.
%
<<
* A cheer went up that could be heard as far as {s2}. "That was brave," said {f}. "I was afraid the whole time," said \
{h}. \
"That is exactly what brave means," said {e}.
| Everyone clapped. "Weren't you scared?" asked {f}. "Terribly," said {h}, "but somebody had to go."
+ Nobody ever teased {him} about being small again, and {h} never again wished to be big.
| The little one followed {h} home that evening, and it has been following {him} ever since.
--
* Then something funny happened. When they looked around, {e} was stuck in the very same place. {eHe} had leaned in \
too far!
| Just then there was a shout. {E} had leaned over to see better, and now {ehe} was stuck as well.
* "Hold on!" called {h}, and {he} went back in as if {he} had never been afraid in {his} life. They all laughed until \
they cried.
| "Oh dear," said {h}, and {he} rolled up {his} sleeves again. It took all of them to pull {ehim} out, with a sound \
like a cork.
+ That evening there was {treat} for everyone, and the largest piece went to the smallest hero.
| "From now on," said {e}, "I will leave the holes to you."
>>
"""

NOISE = r"""
* {Night}, {h} was woken by a strange noise. Tap, tap, tap, it went, somewhere in the dark.
| {Night}, when everyone in {place} was asleep, {h} heard a sound. Scratch, scratch, bump!
| {Night}, a long, sad sound came from the direction of {s1}. {h} sat straight up in bed.
+ "It is a ghost," {he} thought, and {he} pulled the blanket over {his} head.
| {His} hair stood on end. Was it a ghost? Was it a giant?
* The next night it came again. {h} told {f}, {fd}, all about it. "Then let us go and see," said {f}.
| In the morning {he} told {f}, {fd}. "I am not afraid of ghosts," said {f}, but {fhe} did not sound very sure.
* When it was dark, they took {alight} and crept toward {s1}, holding hands.
| So that evening they put on their warmest coats and tiptoed to {s1} with {alight}.
%
* The noise grew louder. {f} held {fhis} breath. Then {h} took one more step and looked around the corner.
| There it was again, quite close now! {h} counted to three and jumped forward.
<<
* There sat {baby} with its head stuck in {aj}, bumping against the stones. It was not a ghost at all.
| It was {baby}! It had put its nose into {aj} and could not get it out again.
* {h} laughed with relief and set it free. "You were more frightened than we were," {he} said.
| "You poor thing," said {h}, and with one careful pull it was free.
+ From that night on, the dark had no ghosts in it for {h}, only friends whom {he} had not met yet.
| It went home with them and slept at the foot of {h}'s bed, and the nights were quiet again.
--
* There was {e}, all alone, trying to play {ak}. The sound was truly terrible.
| It was {e}, sitting on a stone with {ak}, and making the most dreadful noise.
* "I wanted to learn it in secret," said {e} and looked at the ground. "I wanted to surprise everyone at the festival."
| "Oh dear," said {e}. "I practice at night so that nobody can hear how bad I am."
* "You only need someone to listen," said {f}. So every evening they sat beside {ehim}, and every evening it sounded \
a little \
better.
| "My {kin} can play," said {h}. "Come to our house tomorrow, and you can learn it properly."
+ At the festival {e} played a song for all of {place}, and it was called "The Ghost."
| By the end of the summer, people opened their windows at night just to hear the music.
>>
"""

MAP = r"""
* {Day}, {h} found {ao} in the attic, and under it lay an old map. A red cross was marked near {s2}.
| {Day}, {h} was given {ao}, and it was wrapped in yellow paper. The paper was a map, and on it was a red cross.
* "Treasure!" said {h}. {He} ran to tell {f}, {fd}, and they set out at once.
| {He} showed it to {f}, {fd}. "We will be rich!" said {f}, and {fhe} packed some {treat} for the journey.
%
* The map led them past {s1}, across a ditch and through a patch of nettles.
| First they had to count fifty steps from {s1}. Then they had to turn toward the setting sun.
+ Twice they took the wrong path. Once {f} fell into the mud, and {h} laughed so much that {he} fell in too.
| It began to rain, and they shared one coat. They sang all the songs they knew, and then they sang them again.
* At last they stood near {s2}, exactly where the cross was, and began to dig.
| Finally they came to the place with the cross. {h} dug until {his} spade struck something hard.
%
<<
* It was a small box. Inside there was no gold, only a note: "If you have come this far together, you have already \
found it."
| In the ground was a tin box, and in the box was a piece of paper. It said: "The treasure is whoever is standing \
next to you."
+ {f} looked disappointed for a moment. Then {fhe} looked at {h}, covered in mud from top to toe, and {fhe} began to \
laugh.
| {h} read it twice. Then {he} looked at {f}, who had leaves in {fhis} hair, and {he} thought that it was true.
* They put the map back under the {o}, so that some day two other friends could find it.
| They kept the note with the {o}, and whenever they had a quarrel, one of them took it out and read it aloud.
--
* It was a box with {ap} inside, and under it lay a letter from {h}'s own {kin}. "I hid my treasure here when I was \
young."
| Out came a wooden box, and in it was {ap}. "That is mine!" said {e}, who had come along the path. "I buried it when \
I was \
seven, and then I could not find it again."
* It was not worth much, but to {h} it was better than gold.
| "Then we have found your treasure," said {h}, and they told the whole story from the beginning.
+ On the way home they drew a map of their own, with a red cross in the middle.
| The next day {h} and {f} buried a box of their own and drew a new map, for somebody who was not yet born.
>>
"""

CONTEST = r"""
* Every autumn there was a cooking contest near {s1}, and the prize was {ao}.
| {Day}, a sign was put up near {s1}: "Cooking contest! The winner gets {ao}."
* {h} decided to make {dish} the way {his} {kin} had always made it.
| "I will make my famous {dish}," said {h}, although it was not famous at all.
* {f}, {fd}, helped {him} to stir. They were so busy talking that they did not watch what they put in.
| {He} asked {f}, {fd}, to help, and together they chopped and stirred and sang.
%
* Only when it was too late did {h} see that {he} had used [salt instead of sugar|pepper instead of cinnamon|the \
wrong bag of flour].
| Then {f} turned pale. "{h}," {fhe} said, "did you mean to put in [the mint|a whole lemon|the hot mustard]?"
+ "It is ruined!" cried {h}, and there was no time to make another one.
| {h} wanted to throw it all away. "Wait," said {f}. "Let us take it there anyway."
* One by one the judges tasted. When {e} came to {h}'s {dish}, {ehe} took one bite and stopped.
| {E} was the judge. {eHe} tasted, frowned and tasted again. Everyone waited.
%
<<
* "I have eaten {dish} for sixty years," said {e}, "and never has it surprised me before." And {ehe} gave {h} the {o}.
| Slowly a smile spread over {ehis} face. "This is new," {ehe} said. "This is wonderful!" And so the prize went to {h}.
+ "What is your secret?" everyone asked. {h} looked at {f}. "A good friend who talks too much," {he} said.
| When people asked for the recipe, {h} and {f} only laughed. They had to make the same mistake again every year.
--
* "This," said {e}, "is the worst {dish} that I have ever tasted." Then {ehe} began to laugh, and soon everyone was \
laughing.
| {E} coughed until tears ran down {ehis} face. "Water!" {ehe} cried. And then {ehe} laughed as {ehe} had not laughed \
in years.
* {h} did not win the {o}. But {e} made a second prize on the spot, for the cook who had made the most people happy.
| The {o} went to somebody else, but all evening long people came to {h}'s table to taste the terrible {dish} and laugh.
+ It was a wooden spoon, and {h} hung it over the stove, where it still hangs today.
| "We lost," said {f} on the way home. "I have never had so much fun in my life," said {h}.
>>
"""

NEWCOMER = r"""
* {Day}, a new family moved into the empty house near {s1}. They had a child named {c}, who did not speak to anyone.
| {Day}, {h} saw somebody new near {s1}. It was {c}, who had just come to {place} and never said a word.
+ "{c} is proud," said some. "{c} is rude," said others. {h} was not so sure.
| Everyone in {place} tried to say hello, but {c} only looked at the ground.
%
* The next morning {h} sat down near {s1} with {his} {oa} and did not say anything either.
| {h} had an idea. {He} took {his} {oa}, sat down beside {c} and said nothing at all.
* They sat like that for a long time. On the second day {c} moved a little closer. On the third day {c} reached out \
and \
touched the {o}.
| So they sat in silence, and the clouds went by. The next day they did the same, and the day after that as well.
+ {h} held it out. "You can try it if you like," {he} said {softly}.
| Then {h} put the {o} between them, and {c} smiled for the first time.
%
<<
* "I had one just like it," said {c} at last. "I had to leave it behind." The voice was so soft that {h} almost \
missed it.
| "Where I come from, we have a different word for that," said {c}, and said the word. {h} tried to say it, and they \
both laughed.
+ After that {c} talked and talked, about the old house, the long road and the sea of stars above it.
| It turned out that {c} knew hundreds of stories, and had only been waiting for somebody who would listen.
* When {f}, {fd}, asked how {h} had done it, {he} said, "I just kept quiet." And {c}, who was talking, did not even \
notice.
| The next day {h} brought {f} along as well, and soon there were three of them sitting near {s1}, all talking at once.
--
* {c} took out a piece of chalk and began to draw on the stones: a house, a boat, a dog with one ear.
| Instead of an answer, {c} took a pencil and drew a picture of the {o}. It was the finest drawing that {h} had ever \
seen.
* {h} understood. {c} was not proud at all. {c} simply spoke with pictures.
| "So that is how you talk!" said {h}. {He} drew a small sun beside the picture.
* By the end of the summer there were pictures on every wall from {s1} to {s2}, and everybody in {place} had learned \
to read them.
| Soon {f}, {fd}, was drawing too, and in the evenings the three of them told each other long stories without a \
single word.
>>
"""

WISH = r"""
* People said that the wishing stone near {s1} could grant one wish, but only to somebody who brought it {ao}.
| There was an old saying in {place}: whoever carries {ao} to {s1} at midnight may make one wish.
* {h} had just such {a:o}, and {he} had a wish as well: {he} wanted to see the wide world.
| {h} wanted a wish more than anything. {He} dreamed of sailing far away, and by good luck {he} had just such {a:o}.
* {Night}, {he} put on {his} coat and set out. On the way {he} met {f}, {fd}, who was sitting alone in the dark.
| {Night}, {he} set out all alone. Near {s2} {he} found {f}, {fd}, crying quietly.
* "{Mykin} is ill," said {f}, "and nothing helps."
| "What is wrong?" asked {h}. "It is my {kin2}," said {f}. "{Mykin} has been ill for so long."
%
* {h} was silent for a while. Then {he} put the {o} into {f}'s hands. "Take this," {he} said. "You need the wish more \
than I do."
| {h} looked at the {o}, and {he} thought about the wide world. Then {he} walked to {s1} and wished with all {his} \
heart that \
{f}'s {kin2} would get well.
* By the end of the week {f}'s {kin2} was sitting in the garden, laughing.
| Three days later {f} came running. "It worked!" {fhe} shouted. "It really worked!"
<<
* And then something happened that nobody had expected. {f}'s {kin2} turned out to be the owner of a ship. "I hear \
that you want to \
see the world," said the owner to {h}. "We sail on Monday."
| To thank {h}, the whole family gave {him} a place on their boat. They were going on a long journey, and there was \
room for one \
more.
+ So {h} saw the wide world after all, with {f} beside {him}.
| And that is how {h} came to see the wide world, without having used a single wish on it.
--
* "But what about your own wish?" asked {f}. {h} {smiled}. "When I saw you laugh," {he} said, "I forgot what it was."
| "You gave your wish away," said {f}. "No," said {h}, "I only found a better one."
+ They went back to {s1} together and left the {o} there, for the next person who might need it.
| That summer they built a little boat of their own. It was not the wide world, but it was a start.
>>
"""

PROMISE = r"""
* {Day}, {h} promised to bring {ao} to {e} before sunset.
| "Please take this {oa} to {e} today," said {h}'s {kin} {day}. "I have promised it." {h} nodded.
* But near {s1} {he} met {f}, {fd}, and they began to play.
| But on the way, near {s1}, {he} met {f}, {fd}, who had just found {ap}.
+ One game led to another, and when {h} looked up, the sun was already going down.
| They talked and they laughed, and the hours flew by like birds.
* "The {o}!" cried {h}. "I forgot all about it!"
| Suddenly {h} went cold. "I made a promise," {he} said, "and I have forgotten it."
%
* "Say that you were ill," said {f}. {h} thought about it, but it did not feel right. "I will tell the truth," {he} \
said.
| {He} could have waited until morning. {He} could have made up an excuse. Instead {he} picked up the {o} and ran.
* It was dark when {he} knocked at the door near {s2}. "I am late," said {h}, "and it is nobody's fault but mine."
| {He} ran all the way to {s2} and knocked, quite out of breath. "I am sorry," {he} said. "I was playing, and I forgot."
%
<<
* {E} looked at {him} for a long moment. Then {ehe} began to smile. "To tell the truth," {ehe} said, "I forgot about \
it too. I \
have only just come home."
| {E} opened the door, and there was flour all over {ehis} face. "Late?" {ehe} said. "I thought that it was tomorrow!"
+ They both laughed, and {h} was given some {treat} for {his} honesty.
| "But I am glad that you came," {ehe} said, "and even more glad that you told me the truth."
+ After that, {h} tied a knot in {his} scarf whenever {he} made a promise.
| From then on, {h} was never late again. Well, almost never.
--
* "I was counting on it," said {e}, and {ehe} sounded disappointed. "Today is my birthday, and I wanted to show it to \
my guests."
| {E} sighed. "I waited for you all afternoon," {ehe} said. "It was meant as a gift for somebody who has already gone \
home."
* {h} hung {his} head. Then {he} had an idea. "May I make it right?" {he} asked.
| {h} felt terrible. "Give me until tomorrow," {he} said, "and I will put it right."
* The next morning {he} came back with {f}, {treat} and half of {place}. They had a second party, and it was better \
than the first.
| {He} and {f} got up before the sun and carried everything where it had to go. When {e} woke up, it was all done.
+ "A promise can be late," said {e}, "but a good heart always arrives."
| "Now I know that I can trust you," said {e}, "because you came back."
>>
"""

SEED = r"""
* {Day}, {e} gave {h} a {seed}. "Plant it and look after it," {ehe} said, "and be patient."
| {Day}, {h} found a {seed} near {s1}, and {he} took it home to plant it.
* {h} put it into {apot} and gave it water every day.
| {He} planted it near {s2}, where the sun was warm, and {he} drew a little circle around it with white stones.
* A week went by, and nothing happened. Another week went by, and still there was nothing but earth.
| Days passed, and then weeks. The earth stayed brown and bare.
* "It is dead," said {f}, {fd}. "Why don't you plant something else?" But {h} did not give up.
| {f}, {fd}, came to look at it every morning. "Perhaps it is only a pebble," {fhe} said.
%
* {He} told it stories. {He} sang to it when it rained. When the nights grew cold, {he} covered it with {his} {x}.
| Every evening {he} sat beside it and told it about the day. In the cold nights {he} kept it warm with {his} own {x}.
<<
* Then, one morning, there was a tiny green tip. By noon it had two leaves, and by summer it had become {abloom}.
| And at the end of the winter a small green leaf pushed up through the earth. It grew and grew until it was {abloom}.
* "How did you know?" asked {f}. "I didn't," said {h}. "I only knew that it needed more time than I did."
| "You were right," said {f}, "and I was wrong." "Come and sit down," said {h}. "There is enough shade for two."
+ In autumn there were a hundred new seeds, and {h} gave one to everybody in {place}.
| When it gave its first seeds, {h} put one into {f}'s hand. "Plant it," {he} said, "and be patient."
--
* One day {h} could wait no longer. {He} dug a little hole to see, and there was no seed at all! A mouse had carried \
it away.
| Then one morning {f} came running. "{h}!" {fhe} called. "Come and look behind {s1}!"
* And there, behind {s1}, where the mouse had hidden it, stood {abloom}, in full bloom.
| Something had carried the {seedn} off in the night and had hidden it there. Now {abloom} was growing in that very \
spot.
+ {h} laughed until {he} had to sit down. "All this time I was singing to the bare earth," {he} said.
| "I watered the wrong place all year," said {h}, and {he} began to laugh.
+ "It must have heard you anyway," said {f}, and {fhe} may well have been right.
| "Your songs were loud enough," said {f}. "It heard you from here."
>>
"""

BORROWED = r"""
* {Day}, {h} asked {f}, {fd}, if {he} could borrow {fhis} {oa}. "Of course," said {f}, "but please be careful with it."
| {f}, {fd}, owned {ao}. {Day}, {fhe} let {h} take it home. "Only until tomorrow," {fhe} said.
* {h} was very careful, until {he} tripped near {s1}. The {o} flew out of {his} hands and hit the ground.
| On the way past {s1}, {h} slipped on a wet stone. There was a small, horrible crack.
* When {he} picked it up, a piece was missing.
| {He} looked at the {o}. A corner had broken off.
%
+ "I could hide it," {he} thought. "I could say that it was stolen." {He} did not sleep at all that night.
| All evening {he} tried to think of an excuse, and every excuse felt heavier than the one before.
* In the morning {he} went to {f}. "I broke it," {he} said. "I am so sorry. I will give you my own {pa} instead."
| At last {he} got up, put on {his} shoes and went straight to {f}'s door. "I have something to tell you," {he} said, \
and {he} \
told {fhim} everything.
<<
* {f} turned red. "I have something to tell you too," {fhe} said. "It was already broken. I broke it last year and \
only stuck the \
piece back on."
| {f} looked at the {o} and then at {h}. To {his} surprise, {fhe} began to smile. "That piece falls off every week," \
{fhe} said. \
"I should have told you."
+ They looked at each other and laughed. Then they fetched a pot of glue and mended it together, properly this time.
| "Then we are both bad at telling the truth," said {h}, "but we are getting better." They mended it that afternoon.
--
* {f} was quiet for a moment. "I am sad about the {o}," {fhe} said, "but I would be much sadder if you had lied to me."
| {f} took a deep breath. "It was only {a:o}," {fhe} said. "You are my friend."
* They went back to {s1} together and searched until they found the missing piece. {E} mended it with a drop of glue.
| Together they took it to {e}, who mended it so well that the crack looked like a little silver river.
+ And whenever {h} saw that crack again, {he} remembered how light {his} heart had felt when {he} told the truth.
| After that, {f} lent {h} everything {fhe} had, because {fhe} knew that {he} could be trusted.
>>
"""

CREATURE = r"""
* {Day}, {h} heard something near {s1}. It was {ao}, all alone, and it looked {very} sad.
| {Day}, there was {ao} in front of {h}'s door, as if it had been waiting for {him}.
| {Day}, {h} met {ao} near {s1}. They looked at each other for a long time.
+ "Hello," said {h} {softly}. The {o} put its head to one side and did not run away.
| {h} held out a piece of {treat}. The {o} sniffed at it, and then it ate it all.
* {f}, {fd}, was frightened at first. "What if it bites?" {fhe} asked. "It only wants a friend," said {h}.
| "May we keep it?" asked {f}, {fd}, who came running. "I think that it wants to keep us," said {h}.
+ From then on, the {o} followed them everywhere, from {s1} to {s2} and back again.
| Soon the three of them could be seen near {s2} every day, playing and napping in the sun.
%
* But {e} was not pleased. "{A:o} cannot live here," {ehe} said. "It is too [wild|loud|strange] for {place}."
| "{A:o} does not belong in {place}," said {e}. "You must take it back to where it came from."
<<
* Then, one night, the {o} woke {h} and would not lie still. Outside, the water was rising, and nobody had noticed.
| That very night, {h} was woken by a gentle push. It was the {o}. There was smoke in the air, and everyone else was \
asleep.
* They ran from door to door until all of {place} was awake, and everybody was safe before morning.
| {h} and the {o} woke {f}, and {f} woke {e}, and soon the danger was over.
* "I was wrong," said {e} the next day, and {ehe} scratched the {o} behind the ear. "It belongs here more than I do."
| The next morning {e} came with {treat}. "This is not for you," {ehe} told {h}. "This is for the {o}."
--
* {h} was sad, but {he} knew that everyone needs a home. So {he} and {f} walked far beyond {s2} with the {o} between \
them.
| "Perhaps somebody is missing it," said {h}. They packed some {treat} and went to look for its family.
* At sunset they heard a call. On the hill stood another {o}, only much bigger, and it was looking in every direction.
| And there, on the other side of the hill, was another {o}, big and worried. It had been searching for days.
+ The little {o} looked back once, as if to say thank you, and then it was gone.
| They said goodbye, and {h} did not cry until {he} was home again.
* But in spring there was a scratching at the door. The {o} had come to visit, and it had brought its whole family.
| Every year, on the same day, the {o} came back to {s1} to see them. Even {e} always had some {treat} ready.
>>
"""

ENDINGS = r"""
*
|
|
|
|
|
|
|
|
|
| They still tell this story in {place}.
| And {h} never forgot it.
| The end.
"""
